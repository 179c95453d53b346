import type { FastifyContextConfig } from 'fastify';
import fp from 'fastify-plugin';
import { coarseBucketsMs, fineBucketsMs, type RequestTimes, type RouteTimes } from './request-times.ts';
import { traceIdOf } from './tracing.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Where the route's times are kept. */
    times?: RouteTimes;
  }
}

function bucketsOf(config: FastifyContextConfig | undefined): readonly number[] {
  const access = config?.access;
  const isVerification = access !== undefined && access !== 'public' && ['verifier', 'gateway'].includes(access.role);
  return isVerification ? fineBucketsMs : coarseBucketsMs;
}

/** One line for each reply: the request, its caller and address, and the result. Never a query, a header or a body. Health probes only at `debug`. */
export const requestLog = fp<{ times?: RequestTimes }>(
  async (app, { times }) => {
    // None of this can be a secret by its name, and looking for one took longer than the rest of the line. What has the form
    // of a token is taken out of this line too.
    const log = app.log.child({}, { redact: [] });
    const elsewhere = times?.of([], 'none', coarseBucketsMs);
    if (times !== undefined) {
      app.addHook('onRoute', (route) => {
        route.config = { ...route.config, times: times.of([route.method].flat(), route.url, bucketsOf(route.config)) };
      });
    }
    app.addHook('onResponse', (request, reply, done) => {
      const status = reply.statusCode;
      const durationMs = reply.elapsedTime;
      if (times !== undefined) (request.routeConfig?.times ?? elsewhere)?.observe(status, durationMs);
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
