import type { FastifyReply } from 'fastify';
import fp from 'fastify-plugin';
import { Problem } from '../domain/errors.ts';
import { personOf } from '../domain/principal.ts';
import { networkOf } from '../lib/network-of.ts';
import { createWindowCounter, type WindowCount } from '../lib/window-counter.ts';

/** Requests a minute. */
export interface EndpointLimits {
  /** Of one caller, by its credential, on the management routes. */
  callerLimit: number;
  /** Refused access tokens from one address (IPv6: one /64 network). */
  addressLimit: number;
  /** Reveals of one person, by whichever of its access tokens. */
  revealLimit: number;
}

const windowSeconds = 60;

/** Buckets kept at once per limit; the least recently used one makes room. */
const bucketsKept = 100_000;

declare module 'fastify' {
  interface FastifyInstance {
    endpointLimits: {
      /** Counts a request of this caller and writes the RateLimit fields. @throws Problem `rate_limited` */
      countCaller(request: FastifyRequest, reply: FastifyReply): void;
      /** Counts a refused access token against the caller's address. @throws Problem `rate_limited` */
      countRefusal(request: FastifyRequest, reply: FastifyReply): void;
      /** Counts a reveal by this person. @throws Problem `rate_limited` */
      countReveal(request: FastifyRequest, reply: FastifyReply): void;
    };
  }
}

/** Latchkey's own limits on its own endpoints. The keys' limits at verification are another matter. */
export const endpointLimits = fp<EndpointLimits>(
  async (app, { callerLimit, addressLimit, revealLimit }) => {
    const caller = createWindowCounter({ windowSeconds, capacity: bucketsKept });
    const address = createWindowCounter({ windowSeconds, capacity: bucketsKept });
    const reveal = createWindowCounter({ windowSeconds, capacity: bucketsKept });
    app.decorate('endpointLimits', {
      countCaller({ principal }, reply) {
        const count = caller(principal?.id ?? 'nobody');
        refuseBeyond(callerLimit, count, {
          reply,
          policy: 'caller',
          what: 'This credential has made too many requests.',
        });
      },
      countRefusal({ facts }, reply) {
        const what = 'Too many refused credentials came from this address. A valid one is still accepted.';
        refuseBeyond(addressLimit, address(networkOf(facts.ip)), { reply, policy: 'address', what });
      },
      countReveal({ principal }, reply) {
        const count = reveal(principal === null ? 'nobody' : personOf(principal));
        refuseBeyond(revealLimit, count, { reply, policy: 'reveal', what: 'This admin has revealed too many keys.' });
      },
    });
  },
  { name: 'endpoint-limits' },
);

interface LimitState {
  policy: string;
  limit: number;
  windowSeconds: number;
  remaining: number;
  resetSeconds: number;
}

/** The fields of draft-ietf-httpapi-ratelimit-headers, structured by RFC 9651. */
export function rateLimitFields({ policy, limit, windowSeconds, remaining, resetSeconds }: LimitState) {
  return {
    'ratelimit-policy': `"${policy}";q=${limit};w=${windowSeconds}`,
    ratelimit: `"${policy}";r=${remaining};t=${resetSeconds}`,
  };
}

interface LimitTexts {
  reply: FastifyReply;
  policy: string;
  /** What is said beyond the limit. */
  what: string;
}

/** Writes the RateLimit fields. @throws Problem `rate_limited` */
function refuseBeyond(limit: number, { used, resetSeconds }: WindowCount, { reply, policy, what }: LimitTexts): void {
  const remaining = Math.max(0, limit - used);
  reply.headers(rateLimitFields({ policy, limit, windowSeconds, remaining, resetSeconds }));
  if (used <= limit) return;
  throw new Problem('rate_limited', `${what} The limit is ${limit} in ${windowSeconds} seconds.`, {
    headers: { 'retry-after': String(resetSeconds) },
  });
}
