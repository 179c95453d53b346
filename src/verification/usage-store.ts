import { type RawBuilder, sql } from 'kysely';
import { type Db, type Tx, writeTransaction } from '../database/client.ts';
import { currentTime } from '../database/credential.ts';
import type { Transactor } from '../database/work.ts';
import type { KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';
import { dayMs, startOfPeriod } from '../lib/durations.ts';

/** How often a key was used within an hour, by outcome. Times are milliseconds since 1970. */
export interface KeyUsage {
  organizationId: OrganizationId;
  partnerId: PartnerId | null;
  keyId: KeyId;
  /** The beginning of the hour. */
  hour: number;
  allowed: number;
  denied: number;
  rateLimited: number;
  /** Of those denied: because the key was deleted. */
  afterDeletion: number;
  /** When the key was last allowed something within the hour; null: it was not. */
  lastUsedAt: number | null;
}

/** Whose uses. */
export type UsageOf = { keyId: KeyId } | { partnerId: PartnerId };

/** Adds what was counted to the hours. Rows are written in the order of their keys: two replicas do not deadlock. */
export async function addUsage(db: Db, batch: readonly KeyUsage[]): Promise<void> {
  const ofEach = (read: (usage: KeyUsage) => string | number | null) => batch.map(read);
  const insert = sql`
    insert into usage_hours
      (organization_id, partner_id, key_id, hour, allowed, denied, rate_limited, after_deletion, last_used_at)
    select organization_id, partner_id, key_id, to_timestamp(hour_ms / 1000.0), allowed, denied, rate_limited,
      after_deletion, to_timestamp(last_used_ms / 1000.0)
    from unnest(${ofEach((usage) => usage.organizationId)}::text[], ${ofEach((usage) => usage.partnerId)}::text[],
      ${ofEach((usage) => usage.keyId)}::text[], ${ofEach((usage) => usage.hour)}::bigint[],
      ${ofEach((usage) => usage.allowed)}::bigint[], ${ofEach((usage) => usage.denied)}::bigint[],
      ${ofEach((usage) => usage.rateLimited)}::bigint[], ${ofEach((usage) => usage.afterDeletion)}::bigint[],
      ${ofEach((usage) => usage.lastUsedAt)}::bigint[])
      as used (organization_id, partner_id, key_id, hour_ms, allowed, denied, rate_limited, after_deletion, last_used_ms)
    order by key_id collate "C", hour_ms
    on conflict (key_id, hour) do update set ${countedUp('usage_hours')}`;
  await writeTransaction(db).execute((tx) => insert.execute(tx));
}

/** What a row's counts are after those of another are added to it. */
function countedUp(table: 'usage_hours' | 'usage_days'): RawBuilder<unknown> {
  const before = sql.table(table);
  return sql`allowed = ${before}.allowed + excluded.allowed, denied = ${before}.denied + excluded.denied,
    rate_limited = ${before}.rate_limited + excluded.rate_limited,
    after_deletion = ${before}.after_deletion + excluded.after_deletion,
    last_used_at = greatest(${before}.last_used_at, excluded.last_used_at)`;
}

/**
 * Folds hours into days, but for those of today and of the days before it that are kept by the hour.
 * @returns how many hours were folded
 */
export async function foldOldUsage(
  { db, clock }: Pick<Transactor, 'db' | 'clock'>,
  hourlyDays: number,
): Promise<number> {
  return writeTransaction(db).execute(async (tx) => {
    const nowMs = (await currentTime(tx, clock)).getTime();
    const before = new Date(startOfPeriod(nowMs, dayMs) - hourlyDays * dayMs);
    const { rows } = await sql<{ folded: number }>`
      with moved as (delete from usage_hours where hour < ${before} returning *),
      added as (
        insert into usage_days
          (organization_id, partner_id, key_id, day, allowed, denied, rate_limited, after_deletion, last_used_at)
        select organization_id, partner_id, key_id, date_trunc('day', hour, 'UTC'),
          sum(allowed), sum(denied), sum(rate_limited), sum(after_deletion), max(last_used_at)
        from moved group by 1, 2, 3, 4
        on conflict (key_id, day) do update set ${countedUp('usage_days')})
      select count(*)::int as folded from moved`.execute(tx);
    return rows[0]?.folded ?? 0;
  });
}

export interface UsageQuery {
  organizationId: OrganizationId;
  of: UsageOf;
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
  const inRange = (start: 'hour' | 'day') => sql`
    select ${sql.ref(start)} as start, allowed, denied, rate_limited, after_deletion
    from ${sql.table(`usage_${start}s`)}
    where organization_id = ${organizationId} and ${isOf(of)}
      and ${sql.ref(start)} >= ${from} and ${sql.ref(start)} < ${to}`;
  const all = granularity === 'hour' ? inRange('hour') : sql`${inRange('hour')} union all ${inRange('day')}`;
  const { rows } = await sql<UsagePeriod>`
    select date_trunc(${granularity}, start, 'UTC') as start, sum(allowed)::bigint as allowed,
      sum(denied)::bigint as denied, sum(rate_limited)::bigint as rate_limited,
      sum(after_deletion)::bigint as after_deletion
    from (${all}) as found group by 1 order by 1`.execute(db);
  return rows;
}

/** When the key, or any of the partner's, was last allowed something. */
export async function findLastUse(db: Db, of: UsageOf): Promise<Date | null> {
  const { rows } = await sql<{ at: Date | null }>`
    select greatest((select max(last_used_at) from usage_hours where ${isOf(of)}),
      (select max(last_used_at) from usage_days where ${isOf(of)})) as at`.execute(db);
  return rows[0]?.at ?? null;
}

function isOf(of: UsageOf): RawBuilder<boolean> {
  return 'keyId' in of ? sql`key_id = ${of.keyId}` : sql`partner_id = ${of.partnerId}`;
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
export async function forgetDeletedUses({ db, clock }: Pick<Transactor, 'db' | 'clock'>): Promise<number> {
  const now = await currentTime(db, clock);
  const before = new Date(now.getTime() - dayMs);
  const { numDeletedRows } = await db
    .deleteFrom('deleted_key_uses')
    .where('hour', '<', before)
    .executeTakeFirstOrThrow();
  return Number(numDeletedRows);
}
