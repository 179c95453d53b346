import type { DeliveryId } from '../../domain/ids.ts';

export interface WebhookAttemptsTable {
  delivery_id: DeliveryId;
  number: number;
  at: Date;
  /** The status of the reply. Null: there was no reply, and `reason` says why. */
  status: number | null;
  reason: string | null;
  duration_ms: number;
  /** The beginning of the reply's body. */
  reply: string | null;
}
