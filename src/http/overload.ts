import underPressure from '@fastify/under-pressure';
import type { FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { Problem } from '../core/errors.ts';

export interface OverloadOptions {
  /** How late the event loop may be in the mean before requests are refused. */
  delayLimitMs: number;
}

const lookEveryMs = 500;

/** Verification costs least and is what others wait for, so it is refused last: past so many times the limit. */
const verificationBears = 4;

/**
 * Refuses at once what would only be answered too late, before anything is paid for it. Whoever looks after the service
 * is answered however late it is.
 */
export const overload = fp<OverloadOptions>(
  async (app, { delayLimitMs }) => {
    await app.register(underPressure, {
      maxEventLoopDelay: delayLimitMs,
      sampleInterval: lookEveryMs,
      pressureHandler(request, _reply, _type, delayMs = 0) {
        if (delayMs > delayLimitMs * patienceFor(request)) {
          throw new Problem('overloaded', 'Latchkey has more to do than it can do in time.');
        }
      },
    });
  },
  { name: 'overload', dependencies: ['strict-routes'] },
);

function patienceFor(request: FastifyRequest): number {
  const { access } = request.routeOptions.config;
  if (access === undefined || access === 'public') return Number.POSITIVE_INFINITY;
  return access.role === 'verifier' || access.role === 'gateway' ? verificationBears : 1;
}
