import type { FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { parseTraceparent, type Span, type Tracer, toTraceparent, traceIdOfRequestId } from '../domain/trace.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** This request as a step of its caller's trace; null where the caller has none and nobody records. */
    span: Span | null;
  }
}

/**
 * W3C Trace Context: the caller's trace goes on in here, in the reply and in what is sent because of it. A request without
 * `traceparent` pays for a look at its headers and nothing else, unless spans are recorded. Probes have no span.
 */
export const tracing = fp<{ tracer: Tracer }>(
  async (app, { tracer }) => {
    app.decorateRequest('span', null);
    app.addHook('onRequest', (request, reply, done) => {
      const given = request.headers['traceparent'];
      if ((given !== undefined || tracer.isRecording) && request.routeOptions.config.probe === undefined) {
        const span = tracer.start(parseTraceparent(given), {
          name: nameOf(request),
          kind: 'server',
          facts: {
            'http.request.method': request.method,
            'url.path': pathOf(request),
            'url.scheme': request.protocol,
            'latchkey.request_id': request.id,
          },
        });
        if (span !== undefined) {
          request.span = span;
          reply.header('traceparent', toTraceparent(span.context));
          // No hook, which those would pay for, too, who have no span.
          reply.raw.once('close', () => end(span, request, reply.statusCode));
        }
      }
      done();
    });
  },
  { name: 'tracing' },
);

function end(span: Span, { routeOptions: { url } }: FastifyRequest, status: number): void {
  const route = url === undefined ? {} : { 'http.route': url };
  span.end({ 'http.response.status_code': status, ...route }, { isError: status >= 500 });
}

function nameOf({ method, routeOptions: { url } }: FastifyRequest): string {
  return url === undefined ? method : `${method} ${url}`;
}

function pathOf({ raw }: FastifyRequest): string {
  return raw.url?.split('?', 1)[0] ?? '/';
}

/** Under which trace the log and whoever answers speak of a request. */
export function traceIdOf({ id, span }: Pick<FastifyRequest, 'id' | 'span'>): string {
  return span?.context.traceId ?? traceIdOfRequestId(id);
}
