import type { OrganizationContext, Work } from '../database/work.ts';
import { recordOf, wakeAfterwards } from './commands.ts';
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
 * Sends one delivery again, whatever came of it, under the same webhook-id.
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
  wakeAfterwards(work);
  const [shown] = await withAttempts(work.tx, [delivery]);
  return { attemptList: [], ...delivery, ...shown };
}

/** In one transaction at most, so that it holds up nobody for long. */
const redeliveredAtOnce = 10_000;

export interface Redelivered {
  deliveries: number;
  /** Whether there may be more of them. */
  isCutShort: boolean;
}

/**
 * Sends again what has failed of events since a time, oldest first.
 * @throws Problem `not_found`, `conflict` (the endpoint is disabled)
 */
export async function redeliverFailed(
  work: Work<OrganizationContext>,
  webhookId: string,
  since: Date,
): Promise<Redelivered> {
  const webhook = await lockWebhook(work.tx, work.by.organizationId, webhookId);
  requireEnabled(webhook);
  const wish = { since, now: work.now, limit: redeliveredAtOnce };
  const deliveries = await markFailedDueAgain(work.tx, webhook.id, wish);
  if (deliveries > 0) {
    const details = { deliveryId: null, since: since.toISOString(), deliveries };
    recordOf(work, webhook, 'webhook.redelivered', details);
    wakeAfterwards(work);
  }
  return { deliveries, isCutShort: deliveries === redeliveredAtOnce };
}
