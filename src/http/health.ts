import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { ReadOnlyDatabase } from '../database/fitness.ts';
import { SchemaMismatch } from '../database/migrator.ts';
import { Problem } from '../domain/errors.ts';
import { singleFlight } from '../lib/single-flight.ts';

export interface HealthOptions {
  /** Resolves where keys can be verified. @throws what keeps the service from it */
  checkVerification: () => Promise<void>;
  /** Resolves where the management API works as well. @throws what keeps the service from it */
  checkManagement: () => Promise<void>;
  /** Aborted from the first signal to stop on: no new work should come here. */
  draining: AbortSignal;
}

const healthView = z.object({ status: z.enum(['ok']).meta({ id: 'HealthStatus' }) }).meta({ id: 'Health' });

const readinessQuery = z.strictObject({
  for: z
    .enum(['verification', 'management'])
    .meta({
      id: 'ReadinessQuestion',
      description:
        '`verification`, where it is left out: keys can be verified, if need be from memory (`VERIFY_STALE_SECONDS`). ' +
        '`management`: the database can be read and written as well.',
    })
    .optional(),
});

/** For load balancers and orchestrators: is the process alive, and should requests be sent to it? */
export const healthRoutes: FastifyPluginAsyncZod<HealthOptions> = async (app, options) => {
  const { draining } = options;
  const checks = {
    verification: singleFlight(options.checkVerification),
    management: singleFlight(options.checkManagement),
  };
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
        summary: 'Whether requests should be sent to this replica',
        querystring: readinessQuery,
        response: { 200: healthView },
      },
    },
    async (request) => {
      if (draining.aborted) throw new Problem('unavailable', 'The service is stopping.');
      await checks[request.query.for ?? 'verification']().catch((cause: unknown) => {
        throw new Problem('unavailable', reasonOf(cause), { cause });
      });
      return { status: 'ok' as const };
    },
  );
};

function reasonOf(cause: unknown): string {
  if (cause instanceof SchemaMismatch || cause instanceof ReadOnlyDatabase) return cause.message;
  return 'The database cannot be reached.';
}
