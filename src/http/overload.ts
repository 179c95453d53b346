import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { Problem } from '../domain/errors.ts';
import { type PeriodicTask, startPeriodicTask } from '../lib/periodic-task.ts';
import { isVerification } from './access.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Probes are never rejected for overload. `health` is also exempt from the limit per address. */
    probe?: 'health' | 'metrics';
  }
}

export interface OverloadOptions {
  /** If the average event-loop delay exceeds this value, requests are rejected. */
  delayLimitMs: number;
}

const sampleEveryMs = 500;
const resolutionMs = 10;

/** Verification requests are rejected at this multiple of the limit, because they cost least and matter most. */
const verificationFactor = 4;

/** Rejects requests with 503 while the event loop is overloaded. */
export const overload = fp<OverloadOptions>(
  async (app, { delayLimitMs }) => {
    const histogram = monitorEventLoopDelay({ resolution: resolutionMs });
    let delayMs = 0;
    let sampling: PeriodicTask | undefined;
    const sample = () => {
      // An empty histogram has no mean.
      delayMs = histogram.count === 0 ? 0 : Math.max(0, histogram.mean / 1e6 - resolutionMs);
      histogram.reset();
    };
    // Sampling begins when the server listens, so that the load of the start rejects no requests.
    app.addHook('onListen', async () => {
      histogram.enable();
      sampling ??= startPeriodicTask({ everyMs: sampleEveryMs, run: sample });
    });
    app.addHook('onClose', async () => {
      await sampling?.close();
      histogram.disable();
    });
    app.addHook('onRequest', (request, _reply, done) => {
      if (delayMs <= delayLimitMs || delayMs <= delayLimitMs * delayFactorFor(request)) done();
      else done(new Problem('overloaded', 'Latchkey is overloaded. Try again later.'));
    });
  },
  { name: 'overload', dependencies: ['strict-routes'] },
);

function delayFactorFor(request: FastifyRequest): number {
  const { access, probe } = request.routeConfig;
  if (probe !== undefined) return Number.POSITIVE_INFINITY;
  return isVerification(access) ? verificationFactor : 1;
}
