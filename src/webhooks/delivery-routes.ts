import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { Transactor } from '../database/work.ts';
import { type DeliveryId, isId } from '../domain/ids.ts';
import { decodeCursor, toPage } from '../domain/page.ts';
import { organizationContextOf, organizationOf } from '../http/guard.ts';
import { listOf } from '../http/list.ts';
import { idParam, pageOf, pageQuery, timestampInput } from '../http/schemas.ts';
import { redeliver, redeliverFailed } from './delivery-commands.ts';
import { listDeliveries } from './delivery-store.ts';
import { getWebhook } from './store.ts';
import { deliveryStatusSchema, deliveryView, toDeliveryView } from './views.ts';

const redeliverRequest = z
  .strictObject({ since: timestampInput.meta({ description: 'Events at or after this time.' }) })
  .meta({ id: 'RedeliverRequest', example: { since: '2026-11-23T09:30:00.000Z' } });

const redeliveredView = z
  .object({
    deliveries: z.int().meta({ description: 'The number of deliveries that are sent again.' }),
    isCutShort: z.boolean().meta({ description: 'True if more failed deliveries may remain: call again.' }),
  })
  .meta({ id: 'RedeliveredWebhooks', example: { deliveries: 12, isCutShort: false } });

export const webhookDeliveryRoutes: FastifyPluginAsyncZod<{ transactor: Transactor }> = async (app, { transactor }) => {
  const { db } = transactor;
  const webhookId = idParam("The webhook's id.");

  app.get(
    '/webhooks/:webhookId/deliveries',
    {
      config: { access: { role: 'admin', scope: 'read' }, problems: ['cursor_invalid'] },
      schema: {
        operationId: 'listWebhookDeliveries',
        tags: ['Webhooks'],
        summary: 'List the deliveries of a webhook with their attempts, newest first',
        description: 'Covers the last 30 days.',
        params: z.object({ webhookId }),
        querystring: z.strictObject({
          ...pageQuery,
          status: deliveryStatusSchema.optional(),
        }),
        response: { 200: pageOf('WebhookDeliveryPage', deliveryView) },
      },
    },
    async (request) => {
      const { limit, cursor, status } = request.query;
      const page = { limit, before: decodeCursor(listOf(request), cursor, isDeliveryId) };
      const { id } = await getWebhook(db, organizationOf(request), request.params.webhookId);
      const deliveries = await listDeliveries(db, id, { status }, page);
      const now = new Date(transactor.clock.nowMs());
      return toPage(
        listOf(request),
        deliveries,
        limit,
        (delivery) => delivery.id,
        (delivery) => toDeliveryView(delivery, now),
      );
    },
  );

  app.post(
    '/webhooks/:webhookId/deliveries/:deliveryId/redeliver',
    {
      config: { access: { role: 'admin', scope: 'write' }, idempotencyKey: 'taken', problems: ['conflict'] },
      schema: {
        operationId: 'redeliverWebhook',
        tags: ['Webhooks'],
        summary: 'Send a delivery again under the same webhook-id',
        params: z.object({ webhookId, deliveryId: idParam("The delivery's id.") }),
        response: { 200: deliveryView },
      },
    },
    async (request, reply) =>
      app.runOnce(request, reply, organizationContextOf(request), async (work) => ({
        view: toDeliveryView(await redeliver(work, request.params), work.now),
      })),
  );

  app.post(
    '/webhooks/:webhookId/deliveries/redeliver',
    {
      config: { access: { role: 'admin', scope: 'write' }, idempotencyKey: 'taken', problems: ['conflict'] },
      schema: {
        operationId: 'redeliverFailedWebhooks',
        tags: ['Webhooks'],
        summary: 'Send failed deliveries again',
        description: 'Covers events since the given time, oldest first, at most 10,000 per call.',
        params: z.object({ webhookId }),
        body: redeliverRequest,
        response: { 200: redeliveredView },
      },
    },
    async (request, reply) =>
      app.runOnce(request, reply, organizationContextOf(request), async (work) => ({
        view: await redeliverFailed(work, request.params.webhookId, request.body.since),
      })),
  );
};

const isDeliveryId = (value: string): value is DeliveryId => isId('delivery', value);
