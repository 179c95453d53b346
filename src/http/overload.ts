import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { Problem } from '../domain/errors.ts';
import { type PeriodicTask, startPeriodicTask } from '../lib/periodic-task.ts';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** How the service is doing: answered however late it is. `health` is not counted by address either. */
    probe?: 'health' | 'metrics';
  }
}

export interface OverloadOptions {
  /** Average delay of the event loop beyond which requests are rejected. */
  delayLimitMs: number;
}

const sampleEveryMs = 500;
const resolutionMs = 10;

/** Verification costs least and others wait for it, so it is rejected last: beyond so many times the limit. */
const verificationBears = 4;

/** Rejects at once what would only be answered too late, before it costs anything. */
export const overload = fp<OverloadOptions>(
  async (app, { delayLimitMs }) => {
    const histogram = monitorEventLoopDelay({ resolution: resolutionMs });
    let delayMs = 0;
    let sampling: PeriodicTask | undefined;
    const sample = () => {
      // Without a single sample the histogram has no average.
      delayMs = histogram.count === 0 ? 0 : Math.max(0, histogram.mean / 1e6 - resolutionMs);
      histogram.reset();
    };
    // Not before it listens: what the start itself costs must not reject the first requests.
    app.addHook('onListen', async () => {
      histogram.enable();
      sampling ??= startPeriodicTask({ everyMs: sampleEveryMs, run: sample });
    });
    app.addHook('onClose', async () => {
      await sampling?.close();
      histogram.disable();
    });
    app.addHook('onRequest', (request, _reply, done) => {
      if (delayMs <= delayLimitMs || delayMs <= delayLimitMs * patienceFor(request)) done();
      else done(new Problem('overloaded', 'Latchkey has more to do than it can do in time.'));
    });
  },
  { name: 'overload', dependencies: ['strict-routes'] },
);

function patienceFor(request: FastifyRequest): number {
  const { access, probe } = request.routeConfig;
  if (probe !== undefined) return Number.POSITIVE_INFINITY;
  if (access === undefined || access === 'public') return 1;
  return access.role === 'verifier' || access.role === 'gateway' ? verificationBears : 1;
}
