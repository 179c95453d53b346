import { type RawBuilder, sql } from 'kysely';
import { idAlphabet, type KeyId, type PartnerId } from '../core/ids.ts';
import type { UseCounts } from '../core/use-counts.ts';
import { type Db, writeTransaction } from '../db/client.ts';
import { recentUseAt } from '../keys/store.ts';

/**
 * Uses on their way to the rows of their hours. To count up the row of a key takes as long as to write down the uses of ten
 * others side by side: so each second that is done, and the rows are counted up once for all the seconds that have gathered.
 * What is asked for is added up from both.
 */

/** What is written of a key's uses within an hour. */
export type Usage = Pick<UseCounts, 'keyId' | 'allowed' | 'denied' | 'rateLimited' | 'afterDeletion' | 'lastUsed'>;

/** Whose uses. */
export type UsageOf = { keyId: KeyId } | { partnerId: PartnerId };

/** Keys by the last characters of their ids: who asks for a few keys reads a few parts, and one part at a time is merged. */
export const usageParts: readonly string[] = [...idAlphabet];

function partOf(keyId: KeyId): string {
  return keyId.slice(-1);
}

/**
 * Writes down what was counted within one hour, in one statement. Postgres reads arrays in a fraction of the time that JSON takes,
 * and a column in which nothing was counted is not sent.
 * @param hour since 1970
 */
export async function addRecentUsage(db: Db, hour: number, batch: readonly Usage[]): Promise<void> {
  const byPart = inParts(batch);
  const ofEach = (read: (usage: Usage) => string | number) =>
    Array.from(byPart.values(), (usages) => arrayOf(usages.map(read)));
  const counts = (read: (usage: Usage) => number) => (batch.every((usage) => read(usage) === 0) ? null : ofEach(read));
  const insert = sql`
    insert into usage_recent (part, hour, key_ids, allowed, denied, rate_limited, after_deletion, last_used)
    select part, to_timestamp(${hour}::int * 3600.0), key_ids::text[], allowed::bigint[], denied::bigint[],
      rate_limited::bigint[], after_deletion::bigint[], last_used::int[]
    from unnest(${[...byPart.keys()]}::text[], ${ofEach(({ keyId }) => keyId)}::text[],
      ${counts((usage) => usage.allowed)}::text[], ${counts((usage) => usage.denied)}::text[],
      ${counts((usage) => usage.rateLimited)}::text[], ${counts((usage) => usage.afterDeletion)}::text[],
      ${ofEach((usage) => usage.lastUsed)}::text[])
      as written (part, key_ids, allowed, denied, rate_limited, after_deletion, last_used)`;
  await writeTransaction(db).execute((tx) => insert.execute(tx));
}

function inParts(batch: readonly Usage[]): Map<string, Usage[]> {
  const parts = new Map<string, Usage[]>();
  for (const usage of batch) {
    const part = partOf(usage.keyId);
    const usages = parts.get(part);
    if (usages === undefined) parts.set(part, [usage]);
    else usages.push(usage);
  }
  return parts;
}

/** An array as Postgres reads it. Of ids and numbers alone: nothing in them has to be quoted. */
function arrayOf(values: ReadonlyArray<string | number>): string {
  return `{${values.join(',')}}`;
}

/** So few that they are merged within the time that a query may take. */
export const rowsAtOnce = 1_000;

/**
 * Adds what was written down of one part's keys to their hours. Rows are in the order of their keys, so that two replicas do not
 * deadlock, and what one of them has begun with the other leaves to it. Keys are looked up one by one: Postgres does not know how
 * few they are, and would read all of them.
 * @returns whether there may be more of this part
 */
export async function mergeRecentUsage(db: Db, part: string, atOnce = rowsAtOnce): Promise<boolean> {
  const merge = sql<{ taken: number }>`
    with taken as (
      delete from usage_recent where id in (
        select id from usage_recent where part = ${part} order by id limit ${atOnce} for update skip locked)
      returning *),
    uses as (
      select key_id, hour, sum(allowed) as allowed, sum(denied) as denied, sum(rate_limited) as rate_limited,
        sum(after_deletion) as after_deletion, max(last_used_at) as last_used_at
      from ${usesIn(sql`taken`)} group by key_id, hour),
    added as (
      insert into usage_hours (organization_id, partner_id, key_id, hour, allowed, denied, rate_limited, after_deletion,
        last_used_at)
      select key.organization_id, key.partner_id, uses.* from uses
        cross join lateral (select organization_id, partner_id from api_keys where id = uses.key_id limit 1) as key
      order by uses.key_id, uses.hour
      on conflict (key_id, hour) do update set ${countedUp('usage_hours')})
    select count(*)::int as taken from taken`;
  const { rows } = await writeTransaction(db).execute((tx) => merge.execute(tx));
  return rows[0]?.taken === atOnce;
}

/** Removes the oldest row of a part, which `mergeRecentUsage` cannot add to its hours. @returns its key ids */
export async function dropOldestUsage(db: Db, part: string): Promise<string[]> {
  const { rows } = await sql<{ key_ids: string[] }>`
    delete from usage_recent where id in (
      select id from usage_recent where part = ${part} order by id limit 1 for update skip locked)
    returning key_ids`.execute(db);
  return rows.flatMap((row) => row.key_ids);
}

/** What a row's counts are after those of another are added to it. */
export function countedUp(table: 'usage_hours' | 'usage_days'): RawBuilder<unknown> {
  const before = sql.table(table);
  return sql`allowed = ${before}.allowed + excluded.allowed, denied = ${before}.denied + excluded.denied,
    rate_limited = ${before}.rate_limited + excluded.rate_limited,
    after_deletion = ${before}.after_deletion + excluded.after_deletion,
    last_used_at = greatest(${before}.last_used_at, excluded.last_used_at)`;
}

/** A row for each key and each time it was written down, to be selected from: `key_id`, `hour`, the counts, `last_used_at`. */
export function recentUsageOf(of: UsageOf): RawBuilder<unknown> {
  const isWanted =
    'keyId' in of
      ? sql`part = ${partOf(of.keyId)} and key_id = ${of.keyId}`
      : sql`part = any(array(select right(id, 1) from api_keys where partner_id = ${of.partnerId}))
          and key_id in (select id from api_keys where partner_id = ${of.partnerId})`;
  return usesIn(sql`usage_recent`, isWanted);
}

function usesIn(table: RawBuilder<unknown>, isWanted: RawBuilder<unknown> = sql`true`): RawBuilder<unknown> {
  return sql`(
    select key_id, hour, coalesce(use.allowed, 0) as allowed, coalesce(use.denied, 0) as denied,
      coalesce(use.rate_limited, 0) as rate_limited, coalesce(use.after_deletion, 0) as after_deletion,
      ${recentUseAt} as last_used_at
    from ${table} as recent, unnest(recent.key_ids, recent.allowed, recent.denied, recent.rate_limited,
      recent.after_deletion, recent.last_used)
      as use (key_id, allowed, denied, rate_limited, after_deletion, last_used)
    where ${isWanted}) as recent_use`;
}
