import type { FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { parseTraceparent, type Span, type Tracer, toTraceparent, traceIdOfRequestId } from '../domain/trace.ts';
import { pathOf } from './request-facts.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** The request's span; null if the caller sent no trace and spans are not recorded. */
    span: Span | null;
  }
}

/**
 * Continues the caller's trace (W3C Trace Context) in the request, in the reply and in webhooks that the request causes.
 * Probes have no span.
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
          // A hook would also run for requests without a span.
          reply.raw.once('close', () => end(span, request, reply.statusCode));
        }
      }
      done();
    });
  },
  { name: 'tracing' },
);

function end(span: Span, { id, routeOptions: { url } }: FastifyRequest, status: number): void {
  const route = url === undefined ? {} : { 'http.route': url };
  // Again, because a key that was presented in the body is removed from it meanwhile.
  const requestId = { 'latchkey.request_id': id };
  span.end({ 'http.response.status_code': status, ...requestId, ...route }, { isError: status >= 500 });
}

function nameOf({ method, routeOptions: { url } }: FastifyRequest): string {
  return url === undefined ? method : `${method} ${url}`;
}

/** The trace id of a request, for logs and replies. */
export function traceIdOf({ id, span }: Pick<FastifyRequest, 'id' | 'span'>): string {
  return span?.context.traceId ?? traceIdOfRequestId(id);
}
