import { Readable } from 'node:stream';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Db } from '../database/client.ts';
import { createConcurrencyLimit, organizationGroupOf } from '../http/concurrency-limit.ts';
import { accessTokenOf } from '../http/guard.ts';
import { queryInteger } from '../http/schemas.ts';
import { chainOf } from './chain.ts';
import { exportChain } from './export.ts';
import { readHead } from './store.ts';

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
          'Check the file with docs/verify-history.py or `latchkey audit verify --export`.',
        querystring,
        produces: ['application/x-ndjson'],
        response: { 200: exportView },
      },
    },
    async (request, reply) => {
      const release = atOnce.acquire(organizationGroupOf(request));
      const head = readHead(db, chainOf(accessTokenOf(request).actsIn));
      const { chain, sequence } = await head.catch((error: unknown) => {
        release();
        throw error;
      });
      const stream = Readable.from(exportChain(db, chain, sequence, request.query.after), { highWaterMark: 1 });
      running.add(stream);
      stream.on('close', () => {
        running.delete(stream);
        release();
      });
      return reply
        .header('x-latchkey-last-sequence', sequence)
        .type('application/x-ndjson; charset=utf-8')
        .send(stream);
    },
  );
};
