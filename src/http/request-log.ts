import type { FastifyContextConfig, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { levels } from 'pino';
import { isVerification } from './access.ts';
import { pathOf } from './request-facts.ts';
import type { ObserveRequest, RequestTimes } from './request-times.ts';
import { traceIdOf } from './tracing.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Records the duration of a request to this route. */
    observe?: ObserveRequest;
  }
}

/** Logs one line per reply: request, caller, address and result; never a query, header or body. Health probes at `debug` only. */
export const requestLog = fp<{ times?: RequestTimes }>(
  async (app, { times }) => {
    // No field has a secret name, so redaction by name is off to save time. Tokens are still masked by their form.
    const log = app.log.child({}, { redact: [] });
    const minimumLevel = levels.values[log.level] ?? Number.POSITIVE_INFINITY;
    const observeUnrouted = times?.of([], 'none', 'coarse');
    app.addHook('onRoute', (route) => {
      const buckets = isVerification(route.config?.access) ? 'fine' : 'coarse';
      const observe = times?.of([route.method].flat(), route.url, buckets);
      if (observe !== undefined) route.config = { ...route.config, observe };
    });
    app.addHook('onResponse', (request, reply, done) => {
      const status = reply.statusCode;
      const durationMs = reply.elapsedTime;
      (request.routeConfig?.observe ?? observeUnrouted)?.(status, durationMs);
      const level = levelOf(status, request.routeConfig?.probe);
      if ((levels.values[level] ?? 0) >= minimumLevel) log[level](factsOf(request, status, durationMs), 'request');
      done();
    });
  },
  { name: 'request-log' },
);

function levelOf(status: number, probe: FastifyContextConfig['probe']): 'debug' | 'info' | 'warn' | 'error' {
  if (probe === 'health') return 'debug';
  if (status < 400) return 'info';
  // 503 is temporary, and its cause is logged separately.
  return status < 500 || status === 503 ? 'warn' : 'error';
}

function factsOf(request: FastifyRequest, status: number, durationMs: number) {
  return {
    reqId: request.id,
    traceId: traceIdOf(request),
    method: request.method,
    path: pathOf(request),
    status,
    durationMs: Math.round(durationMs * 10) / 10,
    ip: request.facts?.ip,
    callerId: request.principal?.id,
  };
}
