import { Readable } from 'node:stream';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Db } from '../database/client.ts';
import { createConcurrencyLimit, organizationGroupOf } from '../http/concurrency-limit.ts';
import { accessTokenOf } from '../http/guard.ts';
import { chainOf } from './chain.ts';
import { exportChain } from './export.ts';
import { readHead } from './store.ts';

/** Sent as a stream, so only the document says that it is text. */
const exportView: z.ZodType = z.string().meta({
  example: '{"action":"key.created","actor":{},"previousHash":"00…","hash":"9f…"}\n',
});

export const historyExportRoutes: FastifyPluginAsyncZod<{ db: Db }> = async (app, { db }) => {
  const atOnce = createConcurrencyLimit({
    resources: 'exports of this history',
    totalLimit: 64,
    groupLimit: 4,
    retryAfterSeconds: 5,
  });
  const running = new Set<Readable>();
  // A reader may take as long as it likes, and a service that stops must not: what is cut is seen to be cut.
  app.addHook('preClose', async () => {
    for (const stream of running) stream.destroy(new Error('the service stops'));
  });

  app.get(
    '/history/export',
    {
      config: { access: { role: 'admin', scope: 'read', installation: true }, problems: ['overloaded'] },
      // A HEAD would read everything to say nothing.
      exposeHeadRoute: false,
      schema: {
        operationId: 'exportHistory',
        tags: ['History'],
        summary: 'The whole history as NDJSON, oldest first',
        description:
          'Up to the event that is the last one when the request comes. A line is an event as the list shows it, with ' +
          'previousHash and hash as its last members; without these two its bytes are exactly what was hashed. ' +
          'docs/verify-history.py and `latchkey audit verify --export` check it.',
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
      const stream = Readable.from(exportChain(db, chain, sequence), { highWaterMark: 1 });
      running.add(stream);
      stream.on('close', () => {
        running.delete(stream);
        release();
      });
      return reply.type('application/x-ndjson; charset=utf-8').send(stream);
    },
  );
};
