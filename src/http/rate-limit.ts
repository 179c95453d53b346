import type { FastifyReply } from 'fastify';
import fp from 'fastify-plugin';
import { Problem } from '../domain/errors.ts';
import { limitSubjectOf } from '../domain/principal.ts';
import { rateLimitFields } from '../domain/rate-limit.ts';
import { networkOf } from '../lib/network-of.ts';
import { createWindowCounter, type WindowCount } from '../lib/window-counter.ts';

/** Limits on Latchkey's own endpoints, per minute. */
export interface EndpointLimits {
  /** Requests of one caller to the management API. */
  callerLimit: number;
  /** Rejected credentials from one address (IPv6: one /64 network). */
  addressLimit: number;
  /** Reveals by one person, with any of their access tokens. */
  revealLimit: number;
}

const windowSeconds = 60;

/** The maximum number of counts per limit; beyond it the least recently used one is evicted. */
const countsCapacity = 100_000;

declare module 'fastify' {
  interface FastifyInstance {
    endpointLimits: {
      /** Counts a request of this caller and writes the RateLimit fields. @throws Problem `rate_limited` */
      countCaller(request: FastifyRequest, reply: FastifyReply): void;
      /** Counts a rejected credential of this address. @throws Problem `rate_limited` */
      countRefusal(request: FastifyRequest, reply: FastifyReply): void;
      /** Counts a reveal by this person, or a rotation of this key with itself. @throws Problem `rate_limited` */
      countReveal(request: FastifyRequest, reply: FastifyReply): void;
    };
  }
}

/** Limits on Latchkey's own endpoints. For the limits of API keys see `verification/limits.ts`. */
export const endpointLimits = fp<EndpointLimits>(
  async (app, { callerLimit, addressLimit, revealLimit }) => {
    const caller = createWindowCounter({ windowSeconds, capacity: countsCapacity });
    const address = createWindowCounter({ windowSeconds, capacity: countsCapacity });
    const reveal = createWindowCounter({ windowSeconds, capacity: countsCapacity });
    app.decorate('endpointLimits', {
      countCaller({ principal }, reply) {
        const count = caller(principal?.id ?? 'nobody');
        enforce(callerLimit, count, {
          reply,
          policy: 'caller',
          exceeded: 'This credential has sent too many requests.',
        });
      },
      countRefusal({ facts }, reply) {
        const exceeded = 'This address has sent too many invalid credentials. A valid one is still accepted.';
        enforce(addressLimit, address(networkOf(facts.ip)), { reply, policy: 'address', exceeded });
      },
      countReveal({ principal }, reply) {
        const count = reveal(principal === null ? 'nobody' : limitSubjectOf(principal));
        const exceeded =
          principal?.kind === 'api_key'
            ? 'This key was rotated with itself too often.'
            : 'This admin has revealed too many keys.';
        enforce(revealLimit, count, { reply, policy: 'reveal', exceeded });
      },
    });
  },
  { name: 'endpoint-limits' },
);

interface LimitTexts {
  reply: FastifyReply;
  policy: string;
  /** The first sentence of the problem's detail. */
  exceeded: string;
}

/** Writes the RateLimit fields. @throws Problem `rate_limited` */
function enforce(limit: number, { used, resetSeconds }: WindowCount, { reply, policy, exceeded }: LimitTexts): void {
  const remaining = Math.max(0, limit - used);
  reply.headers(rateLimitFields({ policy, limit, windowSeconds, remaining, resetSeconds }));
  if (used <= limit) return;
  throw new Problem('rate_limited', `${exceeded} The limit is ${limit} in ${windowSeconds} seconds.`, {
    headers: { 'retry-after': String(resetSeconds) },
  });
}
