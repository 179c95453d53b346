import { sql } from 'kysely';
import type { MacColumns } from '../crypto/mac.ts';
import type { Db, Tx } from '../database/client.ts';
import type { WebhookAttemptsTable } from '../database/schema.ts';
import type { Transactor } from '../database/work.ts';
import type { DeliveryId, OrganizationId, WebhookId } from '../domain/ids.ts';
import { chainOf } from '../history/chain.ts';
import { eventText } from '../history/store.ts';

/** What a sender takes up, and what it writes down of it. The endpoint is locked wherever a `Tx` is asked for. */

export interface ClaimedDelivery extends MacColumns {
  id: DeliveryId;
  sequence: number;
  action: string;
  /** The event's text; null where history has none in its place. */
  canonical: string | null;
  leased_until: Date;
  traceparent: string | null;
}

export interface EndpointWithDue {
  id: WebhookId;
  failing_since: Date | null;
}

/**
 * Endpoints that have something due. Goes from endpoint to endpoint through the index, so that one with a long
 * queue costs no more than one with a short one. In an order that chance makes: where a sender has not places enough for
 * all of them, everybody's turn comes.
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

/** Those of an organization's endpoints that have something due, and those that are sent nothing while something waits. */
export async function endpointsToLookAt(
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

/** Whether something waits to be taken up. */
export async function hasDue({ db, clock }: Pick<Transactor, 'db' | 'clock'>, endpointId: WebhookId): Promise<boolean> {
  const { rows } = await sql<{ due: boolean }>`
    select exists (
      select from webhook_deliveries where endpoint_id = ${endpointId} and status = 'pending'
        and due_at <= ${clock.sqlNow}
    ) as due`.execute(db);
  return rows[0]?.due === true;
}

/**
 * The next ones that are due, as many as may be under way at once and as the sender has places for. They are this
 * sender's until the lease ends.
 */
export async function leaseDue(
  tx: Tx,
  { id: endpointId, organization_id: organizationId }: { id: WebhookId; organization_id: OrganizationId },
  { now, leasedUntil, atOnce, places }: { now: Date; leasedUntil: Date; atOnce: number; places: number },
): Promise<ClaimedDelivery[]> {
  const { rows } = await sql<ClaimedDelivery>`
    with leased as (
      update webhook_deliveries set leased_until = ${leasedUntil}, due_at = ${leasedUntil}
      where id in (
        select id from webhook_deliveries
        where endpoint_id = ${endpointId} and status = 'pending' and due_at <= ${now}
          and (leased_until is null or leased_until <= ${now})
        order by due_at, id
        limit least(${places}::bigint, greatest(0, ${atOnce} - (
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

/** Those that wait when their endpoint is sent nothing any more. @returns how many */
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
 * A success, written down where it changes nothing but the delivery: it is still the sender's own, and its endpoint was
 * not failing.
 * @returns whether that is so
 */
export async function markDelivered(
  { db, clock }: Pick<Transactor, 'db' | 'clock'>,
  { id, leased_until }: ClaimedDelivery,
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

/** A delivery that an attempt was made of. Undefined where it was pruned meanwhile. */
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

/** How a delivery stands after an attempt. */
export type Standing =
  | { status: 'pending'; attempts: number; failures: number; due_at: Date; leased_until: null; finished_at: null }
  | { status: 'delivered' | 'failed'; attempts: number; failures: number; leased_until: null; finished_at: Date };

export async function updateStanding(tx: Tx, id: DeliveryId, standing: Standing): Promise<void> {
  await tx.updateTable('webhook_deliveries').set(standing).where('id', '=', id).execute();
}

/** One more attempt of a delivery that another sender has taken up meanwhile, or that has ended. */
export async function countAttempt(tx: Tx, id: DeliveryId, attempts: number): Promise<void> {
  await tx.updateTable('webhook_deliveries').set({ attempts }).where('id', '=', id).execute();
}

/** Gives a delivery back at once, where its attempt was not made. */
export async function release(
  { db, clock }: Pick<Transactor, 'db' | 'clock'>,
  { id, leased_until }: ClaimedDelivery,
): Promise<void> {
  await sql`
    update webhook_deliveries set leased_until = null, due_at = ${clock.sqlNow}
    where id = ${id} and leased_until = ${leased_until}`.execute(db);
}

/** What is not over yet: how many, and how long the one that has waited longest has been due. */
export async function backlogOf(db: Db, now: Date): Promise<{ pending: number; oldestDueSeconds: number }> {
  const { rows } = await sql<{ pending: number; oldest: Date | null }>`
    select count(*) as pending, min(due_at) as oldest from webhook_deliveries where status = 'pending'`.execute(db);
  const { pending = 0, oldest = null } = rows[0] ?? {};
  return { pending, oldestDueSeconds: oldest === null ? 0 : Math.max(0, (now.getTime() - oldest.getTime()) / 1_000) };
}
