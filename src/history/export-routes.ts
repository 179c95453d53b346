import { Readable } from 'node:stream';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Db } from '../database/client.ts';
import { createConcurrencyLimit, organizationGroupOf } from '../http/concurrency-limit.ts';
import { accessTokenOf } from '../http/guard.ts';
import { queryInteger } from '../http/schemas.ts';
import { chainOf } from './chain.ts';
import { exportChain } from './export.ts';
import { readHead, readStoredStart } from './store.ts';

/** The response is a stream; this schema only documents it. */
const exportView: z.ZodType = z.string().meta({
  example: '{"action":"key.created","actor":{},"previousHash":"00…","hash":"9f…"}\n',
});

const querystring = z.strictObject({
  after: queryInteger(0, Number.MAX_SAFE_INTEGER).default(0).meta({
    type: 'integer',
    minimum: 0,
    maximum: Number.MAX_SAFE_INTEGER,
    default: 0,
    description: 'The sequence number of the last event that the reader has. Only later events are exported.',
  }),
});

export const historyExportRoutes: FastifyPluginAsyncZod<{ db: Db }> = async (app, { db }) => {
  const atOnce = createConcurrencyLimit({
    resources: 'exports of this history',
    totalLimit: 64,
    groupLimit: 4,
    retryAfterSeconds: 5,
  });
  const running = new Set<Readable>();
  // A slow reader must not delay the shutdown. The broken connection shows the reader that the export is incomplete.
  app.addHook('preClose', async () => {
    for (const stream of running) stream.destroy(new Error('The service is shutting down.'));
  });

  app.get(
    '/history/export',
    {
      config: {
        access: { role: 'admin', scope: 'read', installation: true },
        problems: ['overloaded'],
        replyHeaders: {
          'X-Latchkey-First-Sequence': {
            description:
              'The sequence number of the first stored event; 0 if there is none. The events before it were moved to files by ' +
              'the operator of the service, and are not exported.',
            schema: { type: 'integer' },
          },
          'X-Latchkey-Last-Sequence': {
            description: 'The sequence number of the last event when the request arrived; 0 if there is none.',
            schema: { type: 'integer' },
          },
        },
      },
      // A HEAD request would read the whole history for nothing.
      exposeHeadRoute: false,
      schema: {
        operationId: 'exportHistory',
        tags: ['History'],
        summary: 'Export history as NDJSON, oldest first',
        description:
          'Ends with the event that is the last one when the request arrives. Each line is an event as in the list, with ' +
          'previousHash and hash as its last members. Without these two members, its bytes are exactly the hashed bytes. ' +
          'With `after`, a reader continues where it stopped. ' +
          'Begins with the first stored event: earlier ones may be archived. The files of the archives and this export, one ' +
          'after the other, are the whole history. ' +
          'Check the file with docs/verify-history.py or `latchkey audit verify --export`.',
        querystring,
        produces: ['application/x-ndjson'],
        response: { 200: exportView },
      },
    },
    async (request, reply) => {
      const release = atOnce.acquire(organizationGroupOf(request));
      const { chain, first, last } = await readEnds(db, chainOf(accessTokenOf(request).actsIn)).catch(
        (error: unknown) => {
          release();
          throw error;
        },
      );
      const after = Math.max(request.query.after, first - 1);
      const stream = Readable.from(exportChain(db, chain, last, after), { highWaterMark: 1 });
      running.add(stream);
      stream.on('close', () => {
        running.delete(stream);
        release();
      });
      return reply
        .header('x-latchkey-first-sequence', first)
        .header('x-latchkey-last-sequence', last)
        .type('application/x-ndjson; charset=utf-8')
        .send(stream);
    },
  );
};

/** The numbers of the first stored event and of the last event; 0 if there are none. */
async function readEnds(db: Db, chain: string) {
  const [before, { sequence: last }] = [await readStoredStart(db, chain), await readHead(db, chain)];
  return { chain, first: before === undefined ? 0 : before.sequence + 1, last };
}
