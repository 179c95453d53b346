import type { OrganizationContext, Work } from '../database/work.ts';
import { recordOf, wakeSenderBeforeCommit } from './commands.ts';
import {
  type DeliveryWithAttempts,
  lockDelivery,
  markDueAgain,
  markFailedDueAgain,
  withAttempts,
} from './delivery-store.ts';
import { requireEnabled } from './policy.ts';
import { lockWebhook } from './store.ts';

/**
 * Sends a delivery again under the same webhook-id, whatever its status.
 * @throws Problem `not_found`, `conflict` (the endpoint is disabled)
 */
export async function redeliver(
  work: Work<OrganizationContext>,
  { webhookId, deliveryId }: { webhookId: string; deliveryId: string },
): Promise<DeliveryWithAttempts> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, webhookId);
  const present = await lockDelivery(work.tx, webhook.id, deliveryId);
  requireEnabled(webhook);
  const delivery = await markDueAgain(work.tx, present.id, work.now);
  recordOf(work, webhook, 'webhook.redelivered', { deliveryId: delivery.id, since: null, deliveries: 1 });
  wakeSenderBeforeCommit(work);
  const [shown] = await withAttempts(work.tx, [delivery]);
  return { attemptList: [], ...delivery, ...shown };
}

/** Bounds the transaction, so that it holds its locks briefly. */
const redeliveredAtOnce = 10_000;

export interface Redelivered {
  deliveries: number;
  /** Whether more failed deliveries may remain. */
  isCutShort: boolean;
}

/**
 * Sends failed deliveries again, for events since a time, oldest first.
 * @throws Problem `not_found`, `conflict` (the endpoint is disabled)
 */
export async function redeliverFailed(
  work: Work<OrganizationContext>,
  webhookId: string,
  since: Date,
): Promise<Redelivered> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, webhookId);
  requireEnabled(webhook);
  const selection = { since, now: work.now, limit: redeliveredAtOnce };
  const deliveries = await markFailedDueAgain(work.tx, webhook.id, selection);
  if (deliveries > 0) {
    const details = { deliveryId: null, since: since.toISOString(), deliveries };
    recordOf(work, webhook, 'webhook.redelivered', details);
    wakeSenderBeforeCommit(work);
  }
  return { deliveries, isCutShort: deliveries === redeliveredAtOnce };
}
