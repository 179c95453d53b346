import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';

/** How the service is doing, as somebody collects it. */
export interface Metrics {
  contentType: string;
  text(): Promise<string>;
}

/** For Prometheus, and whatever else reads its text format. */
export const metricsRoutes: FastifyPluginAsyncZod<{ metrics: Metrics }> = async (app, { metrics }) => {
  app.get(
    '/metrics',
    {
      config: { access: 'public' },
      schema: {
        operationId: 'getMetrics',
        tags: ['About'],
        summary: 'How the service is doing, in the text format of Prometheus',
        produces: ['text/plain'],
        response: { 200: z.string().meta({ example: 'latchkey_recovery_requests_overdue 0' }) },
      },
    },
    async (_request, reply) => reply.type(metrics.contentType).send(await metrics.text()),
  );
};
