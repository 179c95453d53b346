import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { ReadOnlyDatabase } from '../database/fitness.ts';
import { SchemaMismatch } from '../database/migrator.ts';
import { Problem } from '../domain/errors.ts';
import { singleFlight } from '../lib/single-flight.ts';

export interface HealthOptions {
  /** Resolves if keys can be verified. @throws the reason if not */
  checkVerification: () => Promise<void>;
  /** Resolves if the management API works too. @throws the reason if not */
  checkManagement: () => Promise<void>;
  /** Aborted when the service begins to stop: readiness fails from then on. */
  draining: AbortSignal;
}

const healthView = z.object({ status: z.enum(['ok']).meta({ id: 'HealthStatus' }) }).meta({ id: 'Health' });

const readinessQuery = z.strictObject({
  for: z
    .enum(['verification', 'management'])
    .meta({
      id: 'ReadinessQuestion',
      description:
        '`verification` (the default): keys can be verified, if necessary from memory (`VERIFY_STALE_SECONDS`). ' +
        '`management`: the database can also be read and written.',
    })
    .optional(),
});

/** Liveness and readiness, for load balancers and orchestrators. */
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
        summary: 'Check that the process is alive',
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
        summary: 'Check that this replica can serve requests',
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
