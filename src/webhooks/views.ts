import { z } from 'zod';
import type { Secret } from '../crypto/secret.ts';
import { actorView, idView, timestampView } from '../http/schemas.ts';
import { deliveryFailures } from './delivery-failed.ts';
import type { DeliveryWithAttempts } from './delivery-store.ts';
import { deliveryFlaws, webhookEvents } from './policy.ts';
import type { Webhook } from './store.ts';

/** Typed as text, so that events of other versions can be read. */
export const webhookEventSchema = z.string().meta({
  id: 'WebhookEvent',
  enum: [...webhookEvents],
  description: 'A history action, or `*` for all actions.',
});

export const deliveryStatusSchema = z.enum(['pending', 'delivered', 'failed']).meta({ id: 'WebhookDeliveryStatus' });

const fields = {
  id: idView('webhook'),
  organizationId: idView('org'),
  partnerId: idView('partner').nullable().meta({ description: 'Null if the webhook covers the whole organization.' }),
  url: z.string().meta({ example: 'https://hooks.example.com/latchkey' }),
  events: z.array(webhookEventSchema).meta({ example: ['key.created', 'key.deleted'] }),
  description: z.string().nullable().meta({ example: 'Billing' }),
  status: z.enum(['enabled', 'disabled']).meta({ id: 'WebhookStatus' }),
  disabledAt: timestampView.nullable(),
  disabledReason: z
    .enum(['requested', 'gone', 'failing'])
    .meta({ id: 'DisabledReason' })
    .nullable()
    .meta({ description: 'gone: the endpoint answered 410. failing: all attempts failed for five days.' }),
  failingSince: timestampView.nullable().meta({ description: 'All attempts since this time have failed.' }),
  previousSecretUntil: timestampView
    .nullable()
    .meta({ description: 'Until this time, the previous secret also signs.' }),
  createdAt: timestampView,
  createdBy: actorView,
  deletedAt: timestampView.nullable(),
};

export const webhookView = z.object(fields).meta({ id: 'Webhook' });

export const webhookWithSecretView = z
  .object({
    ...fields,
    secret: z.string().meta({
      description: 'Store the secret now: Latchkey cannot reveal it again.',
      example: 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD',
    }),
  })
  .meta({ id: 'WebhookWithSecret' });

export function toWebhookView(webhook: Webhook): z.infer<typeof webhookView> {
  const { disabled_at: disabledAt, previous_until: previousUntil } = webhook;
  return {
    id: webhook.id,
    organizationId: webhook.organization_id,
    partnerId: webhook.partner_id,
    url: webhook.url,
    events: webhook.events,
    description: webhook.description,
    status: disabledAt === null ? 'enabled' : 'disabled',
    disabledAt: disabledAt?.toISOString() ?? null,
    disabledReason: webhook.disabled_reason,
    failingSince: webhook.failing_since?.toISOString() ?? null,
    previousSecretUntil: previousUntil?.toISOString() ?? null,
    createdAt: webhook.created_at.toISOString(),
    createdBy: webhook.created_by,
    deletedAt: webhook.deleted_at?.toISOString() ?? null,
  };
}

export function toWebhookWithSecretView({ webhook, secret }: { webhook: Webhook; secret: Secret }) {
  return { ...toWebhookView(webhook), secret: secret.reveal() };
}

const attemptView = z
  .object({
    number: z.int().meta({ example: 1 }),
    at: timestampView,
    status: z
      .int()
      .nullable()
      .meta({ description: 'The HTTP status of the reply; null if there was none.', example: 503 }),
    reason: z
      .string()
      .nullable()
      .meta({
        description: `Why there was no reply: ${[...Object.keys(deliveryFailures), 'secret_unreadable', ...Object.keys(deliveryFlaws)].join(', ')}.`,
        example: null,
      }),
    durationMs: z.int().meta({ example: 41 }),
    reply: z.string().nullable().meta({ description: "The first part of the reply's body.", example: 'try later' }),
  })
  .meta({ id: 'WebhookAttempt' });

export const deliveryView = z
  .object({
    id: idView('delivery').meta({ description: 'The webhook-id, the same for all attempts.' }),
    webhookId: idView('webhook'),
    event: z.string().meta({ description: 'The history action of the event.', example: 'key.created' }),
    sequence: z.int().meta({ description: "The event's sequence number in the organization's history.", example: 42 }),
    status: deliveryStatusSchema,
    createdAt: timestampView,
    nextAttemptAt: timestampView.nullable().meta({ description: 'Null if no attempt is due, or one is running.' }),
    finishedAt: timestampView.nullable(),
    attempts: z.array(attemptView),
  })
  .meta({ id: 'WebhookDelivery' });

export function toDeliveryView(delivery: DeliveryWithAttempts, now: Date): z.infer<typeof deliveryView> {
  const { leased_until: leasedUntil } = delivery;
  const isRunning = leasedUntil !== null && leasedUntil > now;
  return {
    id: delivery.id,
    webhookId: delivery.endpoint_id,
    event: delivery.action,
    sequence: delivery.sequence,
    status: delivery.status,
    createdAt: delivery.created_at.toISOString(),
    nextAttemptAt: delivery.status !== 'pending' || isRunning ? null : delivery.due_at.toISOString(),
    finishedAt: delivery.finished_at?.toISOString() ?? null,
    attempts: delivery.attemptList.map(({ number, at, status, reason, duration_ms, reply }) => ({
      number,
      at: at.toISOString(),
      status,
      reason,
      durationMs: duration_ms,
      reply,
    })),
  };
}
