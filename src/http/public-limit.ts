import fp from 'fastify-plugin';
import { Problem } from '../domain/errors.ts';
import { rateLimitFields } from '../domain/rate-limit.ts';
import { networkOf } from '../lib/network-of.ts';
import { createWindowCounter } from '../lib/window-counter.ts';
import { isAnonymous } from './access.ts';

const windowSeconds = 60;

/** The maximum number of counts; beyond it the least recently used one is evicted. */
const countsCapacity = 100_000;

/** Limits the requests without a credential per address and route. Health probes are not counted. */
export const publicLimit = fp<{ limit: number }>(
  async (app, { limit }) => {
    const count = createWindowCounter({ windowSeconds, capacity: countsCapacity });
    app.addHook('onRequest', (request, reply, done) => {
      if (!isAnonymous(request) || request.routeConfig.probe === 'health') {
        done();
        return;
      }
      const { used, resetSeconds } = count(`${networkOf(request.facts.ip)} ${request.routeOptions.url ?? ''}`);
      if (used <= limit) {
        done();
        return;
      }
      reply.headers(rateLimitFields({ policy: 'public', limit, windowSeconds, remaining: 0, resetSeconds }));
      const detail = `This address has sent too many requests to this route. The limit is ${limit} in ${windowSeconds} seconds.`;
      done(new Problem('rate_limited', detail, { headers: { 'retry-after': String(resetSeconds) } }));
    });
  },
  { name: 'public-limit', dependencies: ['request-facts', 'strict-routes'] },
);
