import fastify, { type FastifyBaseLogger, type FastifyInstance } from 'fastify';
import { type FastifyPluginAsyncZod, serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { passingTracer } from '../domain/trace.ts';
import { networkOf } from '../lib/network-of.ts';
import { createConcurrencyLimit, onceClosed } from './concurrency-limit.ts';
import { errorHandler } from './error-handler.ts';
import { requestFacts } from './request-facts.ts';
import { serverOptions } from './server-options.ts';
import { strictRoutes } from './strict-routes.ts';
import { tracing } from './tracing.ts';

/** The metrics of the service as text. */
export interface Metrics {
  contentType: string;
  text(): Promise<string>;
}

/** Serves the metrics in the text format of Prometheus. */
export const metricsRoutes: FastifyPluginAsyncZod<{ metrics: Metrics }> = async (app, { metrics }) => {
  const concurrency = createConcurrencyLimit({
    resources: 'requests for metrics',
    totalLimit: 64,
    groupLimit: 8,
    retryAfterSeconds: 1,
  });
  app.get(
    '/metrics',
    {
      config: { access: 'public', probe: 'metrics', problems: ['not_found', 'overloaded'] },
      schema: {
        operationId: 'getMetrics',
        tags: ['About'],
        summary: 'Get metrics in the text format of Prometheus',
        description: 'If METRICS_PORT is set, metrics are served on that port only.',
        produces: ['text/plain'],
        response: { 200: z.string().meta({ example: 'latchkey_recovery_requests_overdue 0' }) },
      },
    },
    async (request, reply) => {
      onceClosed(reply.raw, concurrency.acquire(networkOf(request.facts.ip)));
      return reply.type(metrics.contentType).send(await metrics.text());
    },
  );
};

/** The maximum number of connections to the metrics port. */
const metricsConnections = 64;

/** A server for metrics alone, for installations whose API port must not expose metrics. */
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
