import fastify, { type FastifyBaseLogger, type FastifyInstance } from 'fastify';
import { type FastifyPluginAsyncZod, serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { passingTracer } from '../domain/trace.ts';
import { networkOf } from '../lib/network-of.ts';
import { createAtOnce, onceClosed } from './at-once.ts';
import { errorHandler } from './error-handler.ts';
import { requestFacts } from './request-facts.ts';
import { serverOptions } from './server-options.ts';
import { strictRoutes } from './strict-routes.ts';
import { tracing } from './tracing.ts';

/** How the service is doing, as somebody collects it. */
export interface Metrics {
  contentType: string;
  text(): Promise<string>;
}

/** For Prometheus, and whatever else reads its text format. */
export const metricsRoutes: FastifyPluginAsyncZod<{ metrics: Metrics }> = async (app, { metrics }) => {
  const atOnce = createAtOnce({ what: 'requests for metrics', inAll: 64, each: 8, retryAfterSeconds: 1 });
  app.get(
    '/metrics',
    {
      config: { access: 'public', probe: 'metrics', problems: ['not_found', 'overloaded'] },
      schema: {
        operationId: 'getMetrics',
        tags: ['About'],
        summary: 'How the service is doing, in the text format of Prometheus',
        description: 'With METRICS_PORT it is on that port, and not on this one.',
        produces: ['text/plain'],
        response: { 200: z.string().meta({ example: 'latchkey_recovery_requests_overdue 0' }) },
      },
    },
    async (request, reply) => {
      onceClosed(reply.raw, atOnce.enter(networkOf(request.facts.ip)));
      return reply.type(metrics.contentType).send(await metrics.text());
    },
  );
};

/** Of the port for metrics alone. */
export const metricsConnections = 64;

/** The same on a port of its own, where the one of the API is open to more people than should see how it is doing. */
export async function buildMetricsServer(
  metrics: Metrics,
  { logger, tokenPrefix }: { logger: FastifyBaseLogger; tokenPrefix: string },
): Promise<FastifyInstance> {
  const app = fastify(serverOptions({ logger, tokenPrefix, trustProxy: false, maxConnections: metricsConnections }));
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  await app.register(requestFacts, { trustProxy: false });
  await app.register(tracing, { tracer: passingTracer });
  await app.register(strictRoutes, { tokenPrefix });
  await app.register(errorHandler, { translate: () => undefined });
  await app.register(metricsRoutes, { metrics });
  return app;
}
