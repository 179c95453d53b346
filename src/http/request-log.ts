import type { FastifyContextConfig } from 'fastify';
import fp from 'fastify-plugin';
import type { ObserveRequest, RequestTimes } from './request-times.ts';
import { traceIdOf } from './tracing.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Counts a request of the route by its time. */
    observe?: ObserveRequest;
  }
}

function bucketsOf(config: FastifyContextConfig | undefined): 'fine' | 'coarse' {
  const access = config?.access;
  const isVerification = access !== undefined && access !== 'public' && ['verifier', 'gateway'].includes(access.role);
  return isVerification ? 'fine' : 'coarse';
}

/** One line for each reply: the request, its caller and address, and the result. Never a query, a header or a body. Health probes only at `debug`. */
export const requestLog = fp<{ times?: RequestTimes }>(
  async (app, { times }) => {
    // None of this can be a secret by its name, and looking for one took longer than the rest of the line. What has the form
    // of a token is taken out of this line too.
    const log = app.log.child({}, { redact: [] });
    const elsewhere = times?.of([], 'none', 'coarse');
    if (times !== undefined) {
      app.addHook('onRoute', (route) => {
        const observe = times.of([route.method].flat(), route.url, bucketsOf(route.config));
        route.config = { ...route.config, observe };
      });
    }
    app.addHook('onResponse', (request, reply, done) => {
      const status = reply.statusCode;
      const durationMs = reply.elapsedTime;
      if (times !== undefined) (request.routeConfig?.observe ?? elsewhere)?.(status, durationMs);
      const facts = {
        reqId: request.id,
        traceId: traceIdOf(request),
        method: request.method,
        path: request.raw.url?.split('?', 1)[0],
        status,
        durationMs: Math.round(durationMs * 10) / 10,
        ip: request.facts?.ip,
        callerId: request.principal?.id,
      };
      if (request.routeConfig?.probe === 'health') log.debug(facts, 'request');
      else if (status < 400) log.info(facts, 'request');
      // 503 passes by itself: the process is stopping or overloaded, or the cause is in a line of its own.
      else if (status < 500 || status === 503) log.warn(facts, 'request');
      else log.error(facts, 'request');
      done();
    });
  },
  { name: 'request-log' },
);
