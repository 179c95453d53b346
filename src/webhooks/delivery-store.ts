import { type Selectable, sql } from 'kysely';
import { pruneInBatches } from '../database/batches.ts';
import type { Db, Tx } from '../database/client.ts';
import type { WebhookAttemptsTable } from '../database/tables/webhook-attempts.ts';
import type { DeliveryStatus, WebhookDeliveriesTable } from '../database/tables/webhook-deliveries.ts';
import type { Transactor } from '../database/work.ts';
import { requireFound } from '../domain/errors.ts';
import type { DeliveryId, WebhookId } from '../domain/ids.ts';
import { dayMs } from '../lib/durations.ts';

export type Delivery = Omit<Selectable<WebhookDeliveriesTable>, 'mac' | 'mac_keyring_id' | 'traceparent'>;
export type Attempt = Selectable<WebhookAttemptsTable>;
export type DeliveryWithAttempts = Delivery & { attemptList: Attempt[] };

const columns = [
  'id',
  'endpoint_id',
  'sequence',
  'action',
  'status',
  'attempts',
  'failures',
  'due_at',
  'leased_until',
  'created_at',
  'finished_at',
] as const;

/** Newest first, up to `limit + 1`. Deliveries and attempts are read in one snapshot. */
export async function listDeliveries(
  db: Db,
  endpointId: WebhookId,
  filter: { status: DeliveryStatus | undefined },
  page: { limit: number; before: DeliveryId | undefined },
): Promise<DeliveryWithAttempts[]> {
  return db
    .transaction()
    .setIsolationLevel('repeatable read')
    .execute(async (tx) => {
      let query = tx
        .selectFrom('webhook_deliveries')
        .select(columns)
        .where('endpoint_id', '=', endpointId)
        .orderBy('id', 'desc')
        .limit(page.limit + 1);
      if (page.before !== undefined) query = query.where('id', '<', page.before);
      if (filter.status !== undefined) query = query.where('status', '=', filter.status);
      return withAttempts(tx, await query.execute());
    });
}

export async function withAttempts(db: Db, deliveries: readonly Delivery[]): Promise<DeliveryWithAttempts[]> {
  const attempts = await db
    .selectFrom('webhook_attempts')
    .select(['delivery_id', 'number', 'at', 'status', 'reason', 'duration_ms', 'reply'])
    .where('delivery_id', '=', sql<DeliveryId>`any(${deliveries.map(({ id }) => id)})`)
    .orderBy('number')
    .execute();
  return deliveries.map((delivery) => ({
    ...delivery,
    attemptList: attempts.filter((attempt) => attempt.delivery_id === delivery.id),
  }));
}

/** @throws Problem `not_found`, also for another endpoint's delivery */
export async function lockDelivery(tx: Tx, endpointId: WebhookId, id: string): Promise<Delivery> {
  const delivery = await tx
    .selectFrom('webhook_deliveries')
    .select(columns)
    .where('endpoint_id', '=', endpointId)
    .where('id', '=', id as DeliveryId)
    .forUpdate()
    .executeTakeFirst();
  return requireFound(delivery, 'delivery to this webhook');
}

/** Makes a delivery due now and restarts its retry schedule. A running attempt keeps its lease. */
export async function markDueAgain(tx: Tx, id: DeliveryId, now: Date): Promise<Delivery> {
  return tx
    .updateTable('webhook_deliveries')
    .set({ status: 'pending', failures: 0, due_at: now, finished_at: null })
    .where('id', '=', id)
    .returning(columns)
    .executeTakeFirstOrThrow();
}

/** Makes failed deliveries due again, oldest first. @returns how many */
export async function markFailedDueAgain(
  tx: Tx,
  endpointId: WebhookId,
  { since, now, limit }: { since: Date; now: Date; limit: number },
): Promise<number> {
  const failed = tx
    .selectFrom('webhook_deliveries')
    .select('id')
    .where('endpoint_id', '=', endpointId)
    .where('status', '=', 'failed')
    .where('created_at', '>=', since)
    .orderBy('created_at')
    .limit(limit);
  const { numUpdatedRows } = await tx
    .updateTable('webhook_deliveries')
    .set({ status: 'pending', failures: 0, due_at: now, finished_at: null })
    .where('id', 'in', failed)
    .executeTakeFirstOrThrow();
  return Number(numUpdatedRows);
}

/** How long deliveries are kept. */
const keptMs = 30 * dayMs;

/** Deletes old deliveries with their attempts. @returns how many */
export function pruneDeliveries(from: Pick<Transactor, 'db' | 'clock'>, batchSize?: number): Promise<number> {
  return pruneInBatches(from, { keptMs, batchSize, deleteOldest });
}

function deleteOldest(tx: Tx, until: Date, count: number) {
  const oldest = tx
    .selectFrom('webhook_deliveries')
    .select('id')
    .where('created_at', '<=', until)
    .orderBy('created_at')
    .limit(count);
  return tx.deleteFrom('webhook_deliveries').where('id', 'in', oldest).executeTakeFirstOrThrow();
}
