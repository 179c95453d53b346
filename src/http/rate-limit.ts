import rateLimitPlugin from '@fastify/rate-limit';
import type { FastifyReply, FastifyRequest } from 'fastify';
import fp from 'fastify-plugin';
import { Problem } from '../core/errors.ts';

/** Requests a minute. */
export interface EndpointLimits {
  /** Of one caller, by its credential, on the management routes. */
  callerLimit: number;
  /** Refused access tokens from one address (IPv6: one /64 network). */
  addressLimit: number;
  /** Reveals of one admin. */
  revealLimit: number;
}

const windowSeconds = 60;

/** Buckets kept at once per limit; the least recently used one makes room. */
const bucketsKept = 100_000;

declare module 'fastify' {
  interface FastifyInstance {
    endpointLimits: {
      /** Counts a request of this caller and writes the RateLimit fields. @throws Problem `rate_limited` */
      countCaller(request: FastifyRequest, reply: FastifyReply): Promise<void>;
      /** Counts a refused access token against the caller's address. @throws Problem `rate_limited` */
      countRefusal(request: FastifyRequest, reply: FastifyReply): Promise<void>;
      /** Counts a reveal by this admin. @throws Problem `rate_limited` */
      countReveal(request: FastifyRequest, reply: FastifyReply): Promise<void>;
    };
  }
}

/** Latchkey's own limits on its own endpoints. The keys' limits at verification are another matter. */
export const endpointLimits = fp<EndpointLimits>(
  async (app, { callerLimit, addressLimit, revealLimit }) => {
    await app.register(rateLimitPlugin, { global: false, cache: bucketsKept });
    const timeWindow = windowSeconds * 1000;
    const keyGenerator = (request: FastifyRequest) => request.principal?.id ?? 'nobody';
    const caller = app.createRateLimit({ max: callerLimit, timeWindow, keyGenerator });
    const reveal = app.createRateLimit({ max: revealLimit, timeWindow, keyGenerator });
    const address = app.createRateLimit({ max: addressLimit, timeWindow });
    app.decorate('endpointLimits', {
      countCaller: async (request, reply) => {
        refuseIfExceeded(reply, 'caller', await caller(request), 'This credential has made too many requests.');
      },
      countRefusal: async (request, reply) => {
        refuseIfExceeded(
          reply,
          'address',
          await address(request),
          'Too many refused credentials came from this address. A valid one is still accepted.',
        );
      },
      countReveal: async (request, reply) => {
        refuseIfExceeded(reply, 'reveal', await reveal(request), 'This admin has looked at too many keys.');
      },
    });
  },
  { name: 'endpoint-limits' },
);

type Count = Awaited<ReturnType<ReturnType<import('fastify').FastifyInstance['createRateLimit']>>>;

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

function refuseIfExceeded(reply: FastifyReply, policy: string, count: Count, detail: string): void {
  if (count.isAllowed) return;
  const { max: limit, remaining, ttlInSeconds: resetSeconds } = count;
  reply.headers(rateLimitFields({ policy, limit, windowSeconds, remaining, resetSeconds }));
  if (!count.isExceeded) return;
  throw new Problem('rate_limited', `${detail} The limit is ${count.max} in ${windowSeconds} seconds.`, {
    headers: { 'retry-after': String(count.ttlInSeconds) },
  });
}
