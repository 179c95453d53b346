import type { OutgoingHttpHeaders } from 'node:http';
import type { FastifyRequest } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { ChangeFeed } from '../database/change-feed.ts';
import type { DatabaseClock } from '../database/clock.ts';
import type { AccessTokenPrincipal } from '../domain/principal.ts';
import { createAtOnce, onceClosed, organizationGroupOf } from '../http/at-once.ts';
import { accessTokenOf } from '../http/guard.ts';
import { createChangeStreams, heartbeatEveryMs, silenceAllowedMs } from './change-streams.ts';
import type { Records } from './records.ts';

interface ChangeRoutesOptions {
  feed: ChangeFeed;
  clock: DatabaseClock;
  records: Pick<Records, 'accessTokens'>;
  streamsAtOnce: number;
  /** Aborted when the service is told to stop, while it still takes requests. */
  draining: AbortSignal;
}

const description = `Server-Sent Events, for backends that keep answers of verify and have to know when to forget them. An answer
depends on three ids: keyId, partnerId and organizationId. Its data is JSON:

| event | data | means |
| --- | --- | --- |
| \`hello\` | \`{ heartbeatMs, silenceAllowedMs }\` | The first event. Forget all that was kept before it. |
| \`heartbeat\` | \`{ at, behindMs, openMs }\` | Every change committed until \`behindMs\` milliseconds before has been told. \`at\` is the time by which keys expire. It was written \`openMs\` milliseconds after the stream was opened: by that a client sees how long it was on its way. |
| \`change\` | \`{ ids }\` | Forget what depends on one of these. |
| \`reset\` | \`{}\` | Changes may have been missed: forget everything. |
| \`down\` | \`{}\` | Changes are not heard of now. Keep nothing and use nothing kept until the next heartbeat. |
| \`end\` | \`{ reason }\` | The last event: \`stopping\`, \`token_expired\` or \`token_changed\`. |

A heartbeat comes each ${heartbeatEveryMs} ms. After ${silenceAllowedMs} ms without one nothing kept is sure to be right: use nothing
kept, and connect anew. A verifier of one organization hears of that one's ids, a verifier for all of all. A client that is
too slow is told to forget everything, and cut off when it takes nothing for 5 seconds.`;

/** For backends that answer from memory: what has changed, as it changes. */
export const changeRoutes: FastifyPluginAsyncZod<ChangeRoutesOptions> = async (app, options) => {
  const { feed, clock, records, streamsAtOnce, draining } = options;
  const mayStillFollow = async ({ id }: AccessTokenPrincipal) => {
    const token = await records.accessTokens.get(id, true);
    return token !== undefined && token.deleted_at === null && token.scopes.includes('read');
  };
  const streams = createChangeStreams({ feed, clock, mayStillFollow, logger: app.log });
  const atOnce = createAtOnce({ what: 'streams of changes', inAll: streamsAtOnce, retryAfterSeconds: 5 });
  // Before the server closes, which would wait for them; and as soon as their clients should go elsewhere.
  app.addHook('preClose', async () => streams.close());
  draining.addEventListener('abort', () => streams.close(), { once: true });
  app.get(
    '/changes',
    {
      exposeHeadRoute: false,
      config: { access: { role: 'verifier', scope: 'read' }, problems: ['overloaded'] },
      schema: {
        operationId: 'followChanges',
        tags: ['Verification'],
        summary: 'Which answers to forget, as it happens',
        description,
        produces: ['text/event-stream'],
        response: {
          200: z.string().meta({ example: 'event: change\ndata: {"ids":["key_01k9s3v5wqe8n8x4r2m6t7yb0c"]}\n\n' }),
        },
      },
    },
    (request, reply) => {
      const principal = followerOf(request);
      streams.requireOpen();
      const leave = atOnce.enter(organizationGroupOf(request));
      // No proxy on the way may keep events back: nginx buffers unless it is told not to.
      reply.headers({
        'content-type': 'text/event-stream',
        'cache-control': 'no-store, no-transform',
        'x-accel-buffering': 'no',
      });
      reply.hijack();
      reply.raw.writeHead(200, reply.getHeaders() as OutgoingHttpHeaders);
      streams.open(principal, reply.raw);
      onceClosed(reply.raw, leave);
    },
  );
};

/** Verifiers have tokens of Latchkey's own: no identity provider vouches for one. */
function followerOf(request: FastifyRequest): AccessTokenPrincipal {
  const principal = accessTokenOf(request);
  if (principal.kind !== 'access_token') throw new Error('the route lets in more than verifiers');
  return principal;
}
