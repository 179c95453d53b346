import { sql } from 'kysely';
import type { MacColumns } from '../crypto/mac.ts';
import type { Db, Tx } from '../database/client.ts';
import type { WebhookAttemptsTable } from '../database/tables/webhook-attempts.ts';
import type { Transactor } from '../database/work.ts';
import type { DeliveryId, OrganizationId, WebhookId } from '../domain/ids.ts';
import { chainOf } from '../history/chain.ts';
import { eventText } from '../history/store.ts';

/** Queries of the webhook sender. Functions that take a `Tx` require a lock on the endpoint. */

export interface LeasedDelivery extends MacColumns {
  id: DeliveryId;
  sequence: number;
  action: string;
  /** The event's text; null if history has no such event. */
  canonical: string | null;
  leased_until: Date;
  traceparent: string | null;
}

export interface EndpointWithDue {
  id: WebhookId;
  failing_since: Date | null;
}

/**
 * Endpoints with due deliveries. Jumps from endpoint to endpoint through the index, so that long queues cost no more
 * than short ones. The order is random, so that every endpoint gets slots when they are scarce.
 */
export async function endpointsWithDue({ db, clock }: Pick<Transactor, 'db' | 'clock'>): Promise<EndpointWithDue[]> {
  const { rows } = await sql<EndpointWithDue>`
    with recursive endpoint (id) as (
      select min(endpoint_id) from webhook_deliveries where status = 'pending'
      union all
      select (select min(endpoint_id) from webhook_deliveries where status = 'pending' and endpoint_id > endpoint.id)
      from endpoint where endpoint.id is not null
    )
    select id, failing_since from endpoint join webhook_endpoints using (id)
    where exists (
      select from webhook_deliveries where endpoint_id = endpoint.id and status = 'pending' and due_at <= ${clock.sqlNow}
    )
    order by random()`.execute(db);
  return rows;
}

/** An organization's endpoints with due deliveries, and disabled or deleted ones with pending deliveries. */
export async function endpointsToCheck(
  { db, clock }: Pick<Transactor, 'db' | 'clock'>,
  organizationId: OrganizationId,
): Promise<WebhookId[]> {
  const { rows } = await sql<{ id: WebhookId }>`
    select id from webhook_endpoints as endpoint
    where organization_id = ${organizationId} and exists (
      select from webhook_deliveries where endpoint_id = endpoint.id and status = 'pending'
        and (due_at <= ${clock.sqlNow} or endpoint.disabled_at is not null or endpoint.deleted_at is not null)
    )`.execute(db);
  return rows.map(({ id }) => id);
}

/** Whether the endpoint has due deliveries. */
export async function hasDue({ db, clock }: Pick<Transactor, 'db' | 'clock'>, endpointId: WebhookId): Promise<boolean> {
  const { rows } = await sql<{ due: boolean }>`
    select exists (
      select from webhook_deliveries where endpoint_id = ${endpointId} and status = 'pending'
        and due_at <= ${clock.sqlNow}
    ) as due`.execute(db);
  return rows[0]?.due === true;
}

/** Leases the next due deliveries, up to the limits. They are reserved for this sender until the lease ends. */
export async function markLeased(
  tx: Tx,
  { id: endpointId, organization_id: organizationId }: { id: WebhookId; organization_id: OrganizationId },
  { now, leasedUntil, atOnce, slots }: { now: Date; leasedUntil: Date; atOnce: number; slots: number },
): Promise<LeasedDelivery[]> {
  const { rows } = await sql<LeasedDelivery>`
    with leased as (
      update webhook_deliveries set leased_until = ${leasedUntil}, due_at = ${leasedUntil}
      where id in (
        select id from webhook_deliveries
        where endpoint_id = ${endpointId} and status = 'pending' and due_at <= ${now}
          and (leased_until is null or leased_until <= ${now})
        order by due_at, id
        limit least(${slots}::bigint, greatest(0, ${atOnce} - (
          select count(*) from webhook_deliveries
          where endpoint_id = ${endpointId} and status = 'pending' and leased_until > ${now}
        )))
        for update skip locked
      )
      returning id, sequence, action, mac, mac_keyring_id, leased_until, traceparent
    )
    select leased.*, ${eventText} as canonical
    from leased left join history on history.chain = ${chainOf(organizationId)} and history.sequence = leased.sequence`.execute(
    tx,
  );
  return rows;
}

/** Fails pending deliveries of a disabled or deleted endpoint. @returns how many */
export async function failPending(tx: Tx, endpointId: WebhookId, now: Date, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    update webhook_deliveries set status = 'failed', leased_until = null, finished_at = ${now}
    where id in (
      select id from webhook_deliveries where endpoint_id = ${endpointId} and status = 'pending'
      order by due_at limit ${limit} for update skip locked
    )`.execute(tx);
  return Number(numAffectedRows ?? 0);
}

/**
 * Records a success if the lease is still valid and the endpoint was not failing.
 * @returns whether it was recorded
 */
export async function markDelivered(
  { db, clock }: Pick<Transactor, 'db' | 'clock'>,
  { id, leased_until }: LeasedDelivery,
  { at, status, duration_ms, reply }: Pick<WebhookAttemptsTable, 'at' | 'status' | 'duration_ms' | 'reply'>,
): Promise<boolean> {
  const { rows } = await sql`
    with delivered as (
      update webhook_deliveries
      set status = 'delivered', attempts = attempts + 1, leased_until = null,
        finished_at = ${clock.sqlNow}
      where id = ${id} and status = 'pending' and leased_until = ${leased_until} and not exists (
        select from webhook_endpoints where id = endpoint_id and failing_since is not null
      )
      returning attempts
    )
    insert into webhook_attempts (delivery_id, number, at, status, duration_ms, reply)
    select ${id}, attempts, ${at}::timestamptz, ${status}::int, ${duration_ms}::bigint, ${reply}::text from delivered
    returning number`.execute(db);
  return rows.length > 0;
}

/** The delivery of an attempt, locked. Undefined if it was pruned meanwhile. */
export async function lockAttempted(tx: Tx, id: DeliveryId) {
  return tx
    .selectFrom('webhook_deliveries')
    .select(['status', 'attempts', 'failures', 'leased_until'])
    .where('id', '=', id)
    .forUpdate()
    .executeTakeFirst();
}

export async function insertAttempt(tx: Tx, attempt: WebhookAttemptsTable): Promise<void> {
  await tx.insertInto('webhook_attempts').values(attempt).execute();
}

/** The state of a delivery after an attempt. */
export type DeliveryState =
  | { status: 'pending'; attempts: number; failures: number; due_at: Date; leased_until: null; finished_at: null }
  | { status: 'delivered' | 'failed'; attempts: number; failures: number; leased_until: null; finished_at: Date };

export async function updateDeliveryState(tx: Tx, id: DeliveryId, state: DeliveryState): Promise<void> {
  await tx.updateTable('webhook_deliveries').set(state).where('id', '=', id).execute();
}

/** Counts an attempt of a delivery that has ended or belongs to another sender by now. */
export async function countAttempt(tx: Tx, id: DeliveryId, attempts: number): Promise<void> {
  await tx.updateTable('webhook_deliveries').set({ attempts }).where('id', '=', id).execute();
}

/** Releases a delivery whose attempt was not made. */
export async function release(
  { db, clock }: Pick<Transactor, 'db' | 'clock'>,
  { id, leased_until }: LeasedDelivery,
): Promise<void> {
  await sql`
    update webhook_deliveries set leased_until = null, due_at = ${clock.sqlNow}
    where id = ${id} and leased_until = ${leased_until}`.execute(db);
}

/** The number of pending deliveries, and how long the oldest due one has been due. */
export async function backlogOf(db: Db, now: Date): Promise<{ pending: number; oldestDueSeconds: number }> {
  const { rows } = await sql<{ pending: number; oldest: Date | null }>`
    select count(*) as pending, min(due_at) as oldest from webhook_deliveries where status = 'pending'`.execute(db);
  const { pending = 0, oldest = null } = rows[0] ?? {};
  return { pending, oldestDueSeconds: oldest === null ? 0 : Math.max(0, (now.getTime() - oldest.getTime()) / 1_000) };
}
