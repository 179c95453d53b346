import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { Problem } from '../core/errors.ts';
import { shareRunning } from '../lib/share-running.ts';

export interface HealthOptions {
  /** Resolves where the service can do its work. @throws what keeps it from that */
  checkReadiness: () => Promise<void>;
  /** Aborted from the first signal to stop on: no new work should come here. */
  draining: AbortSignal;
}

const healthView = z.object({ status: z.enum(['ok']).meta({ id: 'HealthStatus' }) }).meta({ id: 'Health' });

/** For whoever runs the service: is the process alive, and should requests be sent to it? */
export const healthRoutes: FastifyPluginAsyncZod<HealthOptions> = async (app, { checkReadiness, draining }) => {
  const check = shareRunning(checkReadiness);
  app.get(
    '/livez',
    {
      config: { access: 'public', probe: 'health' },
      schema: {
        operationId: 'getLiveness',
        tags: ['About'],
        summary: 'The process answers',
        response: { 200: healthView },
      },
    },
    async () => ({ status: 'ok' as const }),
  );

  app.get(
    '/readyz',
    {
      config: { access: 'public', probe: 'health', problems: ['unavailable'] },
      schema: {
        operationId: 'getReadiness',
        tags: ['About'],
        summary: 'The service and its database can do their work',
        response: { 200: healthView },
      },
    },
    async () => {
      if (draining.aborted) throw new Problem('unavailable', 'The service is stopping.');
      await check().catch((cause: unknown) => {
        throw new Problem('unavailable', 'The database can not be used.', { cause });
      });
      return { status: 'ok' as const };
    },
  );
};
