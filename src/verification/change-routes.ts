import type { OutgoingHttpHeaders } from 'node:http';
import type { FastifyRequest } from 'fastify';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { ChangeFeed } from '../database/change-feed.ts';
import type { DatabaseClock } from '../database/clock.ts';
import type { AccessTokenPrincipal } from '../domain/principal.ts';
import { createConcurrencyLimit, onceClosed, organizationGroupOf } from '../http/concurrency-limit.ts';
import { accessTokenOf } from '../http/guard.ts';
import { createChangeStreams, heartbeatEveryMs, silenceAllowedMs } from './change-streams.ts';
import type { Records } from './records.ts';

interface ChangeRoutesOptions {
  feed: ChangeFeed;
  clock: DatabaseClock;
  records: Pick<Records, 'accessTokens'>;
  streamsAtOnce: number;
  /** Aborted when the service begins to stop, while it still serves requests. */
  draining: AbortSignal;
}

const description = `A stream of Server-Sent Events, for backends that cache verdicts: it reports which cached verdicts to discard. A verdict
depends on three ids: keyId, partnerId and organizationId. The data of each event is JSON:

| event | data | means |
| --- | --- | --- |
| \`hello\` | \`{ heartbeatMs, silenceAllowedMs }\` | The first event. Discard everything cached before it. |
| \`heartbeat\` | \`{ at, behindMs, openMs }\` | The stream has reported every change committed up to \`behindMs\` milliseconds before this event. \`at\` is the database's time, by which keys expire. \`openMs\` is the age of the stream when the event was written; compare it with your own to find out how long the event was delayed. |
| \`change\` | \`{ ids }\` | Discard every verdict that depends on one of these ids. |
| \`reset\` | \`{}\` | Changes may have been missed: discard everything. |
| \`down\` | \`{}\` | Latchkey does not receive changes now. Cache nothing and use no cached verdict until the next heartbeat. |
| \`end\` | \`{ reason }\` | The last event: \`stopping\`, \`token_expired\` or \`token_changed\`. |

Latchkey sends a heartbeat every ${heartbeatEveryMs} ms. After ${silenceAllowedMs} ms without a heartbeat, use no cached verdict and connect again.
A verifier of one organization receives the ids of that organization; a verifier of the installation receives all ids. A
client that reads too slowly receives \`reset\`; if it reads nothing for 5 seconds, Latchkey closes the connection.`;

/** Streams changes to backends that cache verdicts. */
export const changeRoutes: FastifyPluginAsyncZod<ChangeRoutesOptions> = async (app, options) => {
  const { feed, clock, records, streamsAtOnce, draining } = options;
  const isStillAuthorized = async ({ id }: AccessTokenPrincipal) => {
    const token = await records.accessTokens.get(id, true);
    return token !== undefined && token.deleted_at === null && token.scopes.includes('read');
  };
  const streams = createChangeStreams({ feed, clock, isStillAuthorized, logger: app.log });
  const concurrency = createConcurrencyLimit({
    resources: 'streams of changes',
    totalLimit: streamsAtOnce,
    retryAfterSeconds: 5,
  });
  // The server would wait for open streams when it closes, so they end first.
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
        summary: 'Follow the changes that invalidate cached verdicts',
        description,
        produces: ['text/event-stream'],
        response: {
          200: z.string().meta({ example: 'event: change\ndata: {"ids":["key_01k9s3v5wqe8n8x4r2m6t7yb0c"]}\n\n' }),
        },
      },
    },
    (request, reply) => {
      const principal = verifierOf(request);
      streams.requireOpen();
      const release = concurrency.acquire(organizationGroupOf(request));
      // nginx buffers replies unless `x-accel-buffering` is `no`.
      reply.headers({
        'content-type': 'text/event-stream',
        'cache-control': 'no-store, no-transform',
        'x-accel-buffering': 'no',
      });
      reply.hijack();
      reply.raw.writeHead(200, reply.getHeaders() as OutgoingHttpHeaders);
      streams.open(principal, reply.raw);
      onceClosed(reply.raw, release);
    },
  );
};

/** The verifier that opens the stream. Identity providers cannot grant the role verifier. */
function verifierOf(request: FastifyRequest): AccessTokenPrincipal {
  const principal = accessTokenOf(request);
  if (principal.kind !== 'access_token') throw new Error('this route must admit verifiers only');
  return principal;
}
