import { sql } from 'kysely';
import type { KeyId, OrganizationId, PartnerId } from '../core/ids.ts';
import type { UseCounts } from '../core/use-counts.ts';
import type { Db, Tx } from '../db/client.ts';
import { currentTime, type Transactor } from '../db/work.ts';

/** What is written of a key's uses within an hour. */
export type Usage = Pick<
  UseCounts,
  'organizationId' | 'partnerId' | 'keyId' | 'allowed' | 'denied' | 'rateLimited' | 'afterDeletion' | 'lastUsed'
>;

/**
 * Adds what was counted within one hour to what is there, in one statement: thousands of keys may be used each second. Rows are
 * in the order of their keys, so that two replicas do not deadlock. Postgres reads arrays in a fraction of the time that JSON
 * takes, and a column in which nothing was counted is not sent.
 */
export async function addUsage(db: Db, hour: number, batch: readonly Usage[]): Promise<void> {
  const ids = (read: (usage: Usage) => string | null) => arrayOf(batch.map((usage) => read(usage) ?? 'null'));
  const counts = (read: (usage: Usage) => number) => {
    const values = batch.map(read);
    return values.every((value) => value === 0) ? null : arrayOf(values);
  };
  await sql`
    insert into usage_hours (organization_id, partner_id, key_id, hour, allowed, denied, rate_limited, after_deletion,
      last_used_at)
    select organization_id, partner_id, key_id, to_timestamp(${hour}::int * 3600.0),
      coalesce(sum(allowed), 0), coalesce(sum(denied), 0), coalesce(sum(rate_limited), 0),
      coalesce(sum(after_deletion), 0), to_timestamp(${hour}::int * 3600.0 + nullif(max(last_used), -1) / 1000.0)
    from unnest(${ids((usage) => usage.organizationId)}::text[], ${ids((usage) => usage.partnerId)}::text[],
      ${ids((usage) => usage.keyId)}::text[], ${counts((usage) => usage.allowed)}::bigint[],
      ${counts((usage) => usage.denied)}::bigint[], ${counts((usage) => usage.rateLimited)}::bigint[],
      ${counts((usage) => usage.afterDeletion)}::bigint[], ${arrayOf(batch.map((usage) => usage.lastUsed))}::int[])
      as batch (organization_id, partner_id, key_id, allowed, denied, rate_limited, after_deletion, last_used)
    group by 1, 2, 3 order by key_id
    on conflict (key_id, hour) do update set allowed = usage_hours.allowed + excluded.allowed,
      denied = usage_hours.denied + excluded.denied,
      rate_limited = usage_hours.rate_limited + excluded.rate_limited,
      after_deletion = usage_hours.after_deletion + excluded.after_deletion,
      last_used_at = greatest(usage_hours.last_used_at, excluded.last_used_at)`.execute(db);
}

/** An array as Postgres reads it. Of ids and numbers alone: nothing in them has to be quoted. */
function arrayOf(values: ReadonlyArray<string | number>): string {
  return `{${values.join(',')}}`;
}

const dayMs = 86_400_000;

/**
 * Folds hours into days, but for those of today and of the days before it that are kept by the hour.
 * @returns how many hours were folded
 */
export async function foldOldUsage({ db, clockShiftMs }: Transactor, hourlyDays: number): Promise<number> {
  return db.transaction().execute(async (tx) => {
    const nowMs = (await currentTime(tx, clockShiftMs)).getTime();
    const before = new Date(nowMs - (nowMs % dayMs) - hourlyDays * dayMs);
    const { rows } = await sql<{ folded: number }>`
      with moved as (delete from usage_hours where hour < ${before} returning *),
      added as (
        insert into usage_days
          (organization_id, partner_id, key_id, day, allowed, denied, rate_limited, after_deletion, last_used_at)
        select organization_id, partner_id, key_id, date_trunc('day', hour, 'UTC'),
          sum(allowed), sum(denied), sum(rate_limited), sum(after_deletion), max(last_used_at)
        from moved group by 1, 2, 3, 4
        on conflict (key_id, day) do update set allowed = usage_days.allowed + excluded.allowed,
          denied = usage_days.denied + excluded.denied,
          rate_limited = usage_days.rate_limited + excluded.rate_limited,
          after_deletion = usage_days.after_deletion + excluded.after_deletion,
          last_used_at = greatest(usage_days.last_used_at, excluded.last_used_at))
      select count(*)::int as folded from moved`.execute(tx);
    return rows[0]?.folded ?? 0;
  });
}

export interface UsageQuery {
  organizationId: OrganizationId;
  of: { keyId: KeyId } | { partnerId: PartnerId };
  /** Inclusive. */
  from: Date;
  /** Exclusive. */
  to: Date;
  granularity: 'hour' | 'day';
}

export interface UsagePeriod {
  start: Date;
  allowed: number;
  denied: number;
  rate_limited: number;
  after_deletion: number;
}

/** Periods in which there was any use, oldest first. A day is one of UTC. */
export async function listUsage(
  db: Db,
  { organizationId, of, from, to, granularity }: UsageQuery,
): Promise<UsagePeriod[]> {
  const owner = 'keyId' in of ? sql`key_id = ${of.keyId}` : sql`partner_id = ${of.partnerId}`;
  const hours = sql`select hour as start, allowed, denied, rate_limited, after_deletion from usage_hours
    where organization_id = ${organizationId} and ${owner} and hour >= ${from} and hour < ${to}`;
  const all =
    granularity === 'hour'
      ? hours
      : sql`${hours} union all select day, allowed, denied, rate_limited, after_deletion from usage_days
          where organization_id = ${organizationId} and ${owner} and day >= ${from} and day < ${to}`;
  const { rows } = await sql<UsagePeriod>`
    select date_trunc(${granularity}, start, 'UTC') as start, sum(allowed)::bigint as allowed,
      sum(denied)::bigint as denied, sum(rate_limited)::bigint as rate_limited,
      sum(after_deletion)::bigint as after_deletion
    from (${all}) as found group by 1 order by 1`.execute(db);
  return rows;
}

/** When the key, or any of the partner's, was last allowed something. */
export async function findLastUse(db: Db, of: UsageQuery['of']): Promise<Date | null> {
  const owner = 'keyId' in of ? sql`key_id = ${of.keyId}` : sql`partner_id = ${of.partnerId}`;
  const { rows } = await sql<{ at: Date | null }>`
    select greatest((select max(last_used_at) from usage_hours where ${owner}),
      (select max(last_used_at) from usage_days where ${owner})) as at`.execute(db);
  return rows[0]?.at ?? null;
}

/** That a deleted key was presented: the first time that is known of within an hour. */
export interface DeletedUse {
  organizationId: OrganizationId;
  partnerId: PartnerId | null;
  keyId: KeyId;
  hour: Date;
  presentedAt: Date;
  /** The client's address, where the caller has told it. */
  ip: string | null;
}

/** What makes two uses one and the same: key and hour. */
export function nameOfUse({ keyId, hour }: Pick<DeletedUse, 'keyId' | 'hour'>): string {
  return `${keyId} ${hour.getTime()}`;
}

/**
 * Claims these hours for the caller's events. Rows are in the order of their keys, as in `addUsage`.
 * @returns the uses whose hours nobody else had claimed
 */
export async function insertDeletedUses(tx: Tx, uses: readonly DeletedUse[]): Promise<DeletedUse[]> {
  const batch = JSON.stringify(uses.map(({ keyId, hour }) => ({ key_id: keyId, hour: hour.toISOString() })));
  const { rows } = await sql<{ keyId: KeyId; hour: Date }>`
    insert into deleted_key_uses (key_id, hour)
    select key_id, hour from jsonb_to_recordset(${batch}::jsonb) as batch (key_id text, hour timestamptz)
    order by key_id, hour
    on conflict do nothing returning key_id as "keyId", hour`.execute(tx);
  const claimed = new Set(rows.map(nameOfUse));
  return uses.filter((use) => claimed.has(nameOfUse(use)));
}

/** Hours that are over for a day, and in which nobody can present a key any more. @returns how many */
export async function forgetDeletedUses({ db, clockShiftMs }: Transactor): Promise<number> {
  const now = await currentTime(db, clockShiftMs);
  const before = new Date(now.getTime() - dayMs);
  const { numDeletedRows } = await db
    .deleteFrom('deleted_key_uses')
    .where('hour', '<', before)
    .executeTakeFirstOrThrow();
  return Number(numDeletedRows);
}
