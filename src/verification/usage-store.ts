import { type RawBuilder, sql } from 'kysely';
import { type Db, type Tx, writeTransaction } from '../database/client.ts';
import { currentTime } from '../database/credential.ts';
import type { Transactor } from '../database/work.ts';
import type { KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';
import { inBatches } from '../lib/batches.ts';
import { dayMs, startOfPeriod } from '../lib/durations.ts';

/** A key's usage within one hour. Times are milliseconds since 1970. */
export interface KeyUsage {
  organizationId: OrganizationId;
  partnerId: PartnerId | null;
  keyId: KeyId;
  /** The start of the hour. */
  hour: number;
  allowed: number;
  denied: number;
  rateLimited: number;
  /** The part of `denied` that happened after the key was deleted. */
  afterDeletion: number;
  /** The last allowed use within the hour; null: none. */
  lastUsedAt: number | null;
}

/** The key or the partner whose usage is read. */
export type UsageSubject = { keyId: KeyId } | { partnerId: PartnerId };

/** Adds counts to the hours. Rows are written in the order of their keys, so that two replicas do not deadlock. */
export async function addUsage(db: Db, batch: readonly KeyUsage[]): Promise<void> {
  const ofEach = (read: (usage: KeyUsage) => string | number | null) => batch.map(read);
  const insert = sql`
    with used as (select * from unnest(${ofEach((usage) => usage.organizationId)}::text[], ${ofEach((usage) => usage.partnerId)}::text[],
      ${ofEach((usage) => usage.keyId)}::text[], ${ofEach((usage) => usage.hour)}::bigint[],
      ${ofEach((usage) => usage.allowed)}::bigint[], ${ofEach((usage) => usage.denied)}::bigint[],
      ${ofEach((usage) => usage.rateLimited)}::bigint[], ${ofEach((usage) => usage.afterDeletion)}::bigint[],
      ${ofEach((usage) => usage.lastUsedAt)}::bigint[])
      as used (organization_id, partner_id, key_id, hour_ms, allowed, denied, rate_limited, after_deletion, last_used_ms)),
    last_use as (
      insert into key_last_uses (key_id, organization_id, key_created_at, last_used_at)
      select key_id, organization_id, to_timestamp(max(last_used_ms) / 1000.0), to_timestamp(max(last_used_ms) / 1000.0)
      from used where last_used_ms is not null group by key_id, organization_id
      order by key_id collate "C"
      on conflict (key_id) do update set last_used_at = greatest(key_last_uses.last_used_at, excluded.last_used_at))
    insert into usage_hours
      (organization_id, partner_id, key_id, hour, allowed, denied, rate_limited, after_deletion)
    select organization_id, partner_id, key_id, to_timestamp(hour_ms / 1000.0), allowed, denied, rate_limited, after_deletion
    from used order by key_id collate "C", hour_ms
    on conflict (key_id, hour) do update set ${addToCounts('usage_hours')}`;
  await writeTransaction(db).execute((tx) => insert.execute(tx));
}

/** The assignments that add the counts of the inserted row to an existing one. */
function addToCounts(table: 'usage_hours' | 'usage_days'): RawBuilder<unknown> {
  const before = sql.table(table);
  return sql`allowed = ${before}.allowed + excluded.allowed, denied = ${before}.denied + excluded.denied,
    rate_limited = ${before}.rate_limited + excluded.rate_limited,
    after_deletion = ${before}.after_deletion + excluded.after_deletion`;
}

/** Hours per transaction. */
const foldedAtOnce = 10_000;

/**
 * Folds hours into days, except today's and those of the `hourlyDays` days before. A day may be folded in parts: its
 * remaining hours still count where usage is read. May run twice, or several times at once.
 * @returns the number of folded hours
 */
export async function foldOldUsage(
  { db, clock }: Pick<Transactor, 'db' | 'clock'>,
  { hourlyDays, batchSize = foldedAtOnce, signal }: { hourlyDays: number; batchSize?: number; signal?: AbortSignal },
): Promise<number> {
  const nowMs = (await currentTime(db, clock)).getTime();
  const before = new Date(startOfPeriod(nowMs, dayMs) - hourlyDays * dayMs);
  return inBatches(batchSize, (count) => writeTransaction(db).execute((tx) => foldOldest(tx, before, count)), signal);
}

/** Skips hours that another run folds now. Days are written in the order of their keys, as in `addUsage`. */
async function foldOldest(tx: Tx, before: Date, count: number): Promise<number> {
  const { rows } = await sql<{ folded: number }>`
    with moved as (
      delete from usage_hours where ctid = any(array(
        select ctid from usage_hours where hour < ${before} order by hour limit ${count} for update skip locked))
      returning *),
    added as (
      insert into usage_days
        (organization_id, partner_id, key_id, day, allowed, denied, rate_limited, after_deletion)
      select organization_id, partner_id, key_id, date_trunc('day', hour, 'UTC') as day,
        sum(allowed), sum(denied), sum(rate_limited), sum(after_deletion)
      from moved group by organization_id, partner_id, key_id, day order by key_id, day
      on conflict (key_id, day) do update set ${addToCounts('usage_days')})
    select count(*)::int as folded from moved`.execute(tx);
  return rows[0]?.folded ?? 0;
}

/** A range of usage to read. */
export interface UsageQuery {
  organizationId: OrganizationId;
  of: UsageSubject;
  /** Inclusive. */
  from: Date;
  /** Exclusive. */
  to: Date;
  granularity: 'hour' | 'day';
}

/** Usage within one hour or day. */
export interface UsagePeriod {
  start: Date;
  allowed: number;
  denied: number;
  rate_limited: number;
  after_deletion: number;
}

/** Lists the periods with any use, oldest first. Days are days of UTC. */
export async function listUsage(
  db: Db,
  { organizationId, of, from, to, granularity }: UsageQuery,
): Promise<UsagePeriod[]> {
  const inRange = (start: 'hour' | 'day') => sql`
    select ${sql.ref(start)} as start, allowed, denied, rate_limited, after_deletion
    from ${sql.table(`usage_${start}s`)}
    where organization_id = ${organizationId} and ${isUsageOf(of)}
      and ${sql.ref(start)} >= ${from} and ${sql.ref(start)} < ${to}`;
  const all = granularity === 'hour' ? inRange('hour') : sql`${inRange('hour')} union all ${inRange('day')}`;
  const { rows } = await sql<UsagePeriod>`
    select date_trunc(${granularity}, start, 'UTC') as start, sum(allowed)::bigint as allowed,
      sum(denied)::bigint as denied, sum(rate_limited)::bigint as rate_limited,
      sum(after_deletion)::bigint as after_deletion
    from (${all}) as found group by 1 order by 1`.execute(db);
  return rows;
}

/** The last allowed use of the key, or of any key of the partner. */
export async function findLastUse(db: Db, of: UsageSubject): Promise<Date | null> {
  const keys =
    'keyId' in of ? sql`${of.keyId}` : sql`any(array(select id from api_keys where partner_id = ${of.partnerId}))`;
  const { rows } = await sql<{ at: Date | null }>`
    select max(last_used_at) as at from key_last_uses where key_id = ${keys}`.execute(db);
  return rows[0]?.at ?? null;
}

function isUsageOf(of: UsageSubject): RawBuilder<boolean> {
  return 'keyId' in of ? sql`key_id = ${of.keyId}` : sql`partner_id = ${of.partnerId}`;
}

/** The first known use of a deleted key within an hour. */
export interface DeletedUse {
  organizationId: OrganizationId;
  partnerId: PartnerId | null;
  keyId: KeyId;
  hour: Date;
  presentedAt: Date;
  /** The client's address; null: the caller did not send it. */
  ip: string | null;
}

/** Identifies a use by key and hour. */
export function useId({ keyId, hour }: Pick<DeletedUse, 'keyId' | 'hour'>): string {
  return `${keyId} ${hour.getTime()}`;
}

/**
 * Marks these hours as recorded. Rows are in the order of their keys, as in `addUsage`.
 * @returns the uses whose hours were not yet marked
 */
export async function insertDeletedUses(tx: Tx, uses: readonly DeletedUse[]): Promise<DeletedUse[]> {
  const batch = JSON.stringify(uses.map(({ keyId, hour }) => ({ key_id: keyId, hour: hour.toISOString() })));
  const { rows } = await sql<{ keyId: KeyId; hour: Date }>`
    insert into deleted_key_uses (key_id, hour)
    select key_id, hour from jsonb_to_recordset(${batch}::jsonb) as batch (key_id text, hour timestamptz)
    order by key_id, hour
    on conflict do nothing returning key_id as "keyId", hour`.execute(tx);
  const claimed = new Set(rows.map(useId));
  return uses.filter((use) => claimed.has(useId(use)));
}

/** Deletes marks of hours that ended a day ago. @returns the number of deleted marks */
export async function pruneDeletedUses({ db, clock }: Pick<Transactor, 'db' | 'clock'>): Promise<number> {
  const now = await currentTime(db, clock);
  const before = new Date(now.getTime() - dayMs);
  const { numDeletedRows } = await db
    .deleteFrom('deleted_key_uses')
    .where('hour', '<', before)
    .executeTakeFirstOrThrow();
  return Number(numDeletedRows);
}
