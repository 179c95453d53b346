import type { Generated } from 'kysely';
import type { DeliveryId, WebhookId } from '../../domain/ids.ts';

export type DeliveryStatus = 'pending' | 'delivered' | 'failed';

export interface WebhookDeliveriesTable {
  /** The `webhook-id` of every attempt. */
  id: DeliveryId;
  endpoint_id: WebhookId;
  /** The event's sequence number in its organization's chain. */
  sequence: number;
  action: string;
  /** Authenticates the event and its endpoint: a delivery that was not written with the keyring is not sent. */
  mac: Buffer;
  mac_keyring_id: string;
  status: DeliveryStatus;
  attempts: Generated<number>;
  /** Failed attempts since the delivery was created or resent. The retry schedule follows it. */
  failures: Generated<number>;
  /** When a sender may take it: the time of the next attempt, or during an attempt the end of its lease. */
  due_at: Date;
  /** The end of the current sender's lease. */
  leased_until: Date | null;
  created_at: Date;
  finished_at: Date | null;
  /** The `traceparent` header of the request that caused it. */
  traceparent: string | null;
}
