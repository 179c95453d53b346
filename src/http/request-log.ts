import type { FastifyContextConfig, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { levels } from 'pino';
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
    const leastLevel = levels.values[log.level] ?? Number.POSITIVE_INFINITY;
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
      const level = levelOf(status, request.routeConfig?.probe);
      if ((levels.values[level] ?? 0) >= leastLevel) log[level](factsOf(request, status, durationMs), 'request');
      done();
    });
  },
  { name: 'request-log' },
);

function levelOf(status: number, probe: FastifyContextConfig['probe']): 'debug' | 'info' | 'warn' | 'error' {
  if (probe === 'health') return 'debug';
  if (status < 400) return 'info';
  // 503 passes by itself: the process is stopping or overloaded, or the cause is in a line of its own.
  return status < 500 || status === 503 ? 'warn' : 'error';
}

function factsOf(request: FastifyRequest, status: number, durationMs: number) {
  return {
    reqId: request.id,
    traceId: traceIdOf(request),
    method: request.method,
    path: request.raw.url?.split('?', 1)[0],
    status,
    durationMs: Math.round(durationMs * 10) / 10,
    ip: request.facts?.ip,
    callerId: request.principal?.id,
  };
}
