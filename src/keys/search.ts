import { type RawBuilder, sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';
import type { Permission } from '../domain/permissions.ts';
import { foldCase, type KeyStatus } from './policy.ts';

/** Finds keys by filters. */

export interface KeyFilter {
  partnerId?: PartnerId | 'default' | undefined;
  permission?: Permission | undefined;
  status?: KeyStatus | undefined;
  /** The beginning of the name, without regard to case. */
  name?: string | undefined;
  lastFour?: string | undefined;
  /** Exclusive, like the following times. */
  expiresBefore?: Date | undefined;
  createdBefore?: Date | undefined;
  /** Keys without use count by their creation. */
  lastUsedBefore?: Date | undefined;
  scope?: string | undefined;
  /** Only live keys that outlive any key created now, by the maximum lifetime of the organization. */
  pastMaxLifetime?: boolean | undefined;
  /** Members of metadata and their texts. */
  metadata?: ReadonlyArray<readonly [member: string, text: string]> | undefined;
  /** Include restorable keys: deleted after this time, and not as compromised. */
  restorableAfter?: Date | undefined;
}

export interface KeySearch {
  organizationId: OrganizationId;
  filter: KeyFilter;
  now: Date;
}

interface SearchPage {
  limit: number;
  before?: KeyId | undefined;
}

/** A filter that matches at most so many keys finds them by its own index; otherwise all keys are walked. */
const fewKeys = 10_000;

/** The number of keys that are walked first, because a frequent filter fills a page from them. */
const newestKeys = 1_000;

/** The ids of matching keys, newest first. */
export async function findKeys(db: Db, search: KeySearch, page: SearchPage): Promise<KeyId[]> {
  return db.transaction().execute(async (tx) => {
    let ids: KeyId[] = [];
    for await (const query of queriesFor(tx, search, page)) {
      ids = (await query.execute(tx)).rows.map(({ id }) => id);
      if (ids.length === page.limit) break;
    }
    return ids;
  });
}

/** The queries to run one after the other until one fills the page. The last one finds all that there is. */
export async function* queriesFor(tx: Tx, search: KeySearch, page: SearchPage) {
  const indexes = ownIndexes(search);
  await preferWalk(tx, true);
  if (indexes.length > 0) {
    yield walk(search, page, newestKeys);
    await preferWalk(tx, false);
    const few = await findFew(tx, indexes);
    if (few !== undefined) {
      yield pick(search, page, few);
      return;
    }
    await preferWalk(tx, true);
  }
  yield walk(search, page);
}

export async function countKeys(db: Db, search: KeySearch): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select count(*)::int as count from api_keys where ${inIndex(search)} and ${inRow(search)}`.execute(db);
  return rows[0]?.count ?? 0;
}

/** Matching keys among these, locked in the order of their ids. */
export async function lockMatching(tx: Tx, search: KeySearch, ids: readonly KeyId[]): Promise<KeyId[]> {
  const { rows } = await sql<{ id: KeyId }>`
    select id from api_keys where id = any(${ids}) and ${inIndex(search)} and ${inRow(search)}
    order by id for no key update`.execute(tx);
  return rows.map(({ id }) => id);
}

/** Selects the ids of one filter's keys by the index of that filter. */
type OwnIndex = RawBuilder<unknown>;

/** The first filter that matches only a few keys. */
async function findFew(tx: Tx, indexes: readonly OwnIndex[]): Promise<OwnIndex | undefined> {
  for (const index of indexes) {
    const { rows } = await sql<{ count: number }>`
      select count(*)::int as count from (${index} limit ${fewKeys + 1}) as found`.execute(tx);
    if ((rows[0]?.count ?? 0) <= fewKeys) return index;
  }
  return undefined;
}

/**
 * A walk needs neither a sort nor a bitmap, which would read all matches first. Outdated statistics may make a scan of the
 * table look right, which it never is. Applies to this transaction.
 */
async function preferWalk(tx: Tx, isWalk: boolean): Promise<void> {
  const others = isWalk ? 'off' : 'on';
  await sql`select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', ${others}, true),
    set_config('enable_sort', ${others}, true)`.execute(tx);
}

/** Reads the few keys that an index selects, each by itself: for a join Postgres might choose another index. */
function pick(search: KeySearch, { limit, before }: SearchPage, few: OwnIndex) {
  return sql<{ id: KeyId }>`
    with few as materialized (${few})
    select few.id from few
    where (select true from api_keys where id = few.id and ${inIndex(search)} and ${inRow(search)} and ${isAfter(before)})
    order by few.id desc limit ${limit}`;
}

/**
 * Reads the keys from the newest one on. `offset 0` keeps the inner query whole: it reads the index alone. Each row of what
 * it found is read by itself; as a join Postgres might read the rows of all earlier pages.
 * @param most the number of keys that are read
 */
function walk(search: KeySearch, { limit, before }: SearchPage, most?: number) {
  const { organizationId } = search;
  const last = sql`(select id from api_keys where organization_id = ${organizationId} and ${isAfter(before)}
    order by id desc offset ${most} limit 1)`;
  return sql<{ id: KeyId }>`
    select walk.id from (
      select id from api_keys where ${inIndex(search)} and ${isAfter(before)}
        ${most === undefined ? sql`` : sql`and id >= coalesce(${last}, '')`} order by id desc offset 0
    ) as walk
    where ${hasRowFilters(search) ? sql`(select true from api_keys where id = walk.id and ${inRow(search)})` : sql`true`}
    order by walk.id desc limit ${limit}`;
}

function isAfter(before: KeyId | undefined) {
  return before === undefined ? sql`true` : sql`api_keys.id < ${before}`;
}

const isKept = sql`purged_at is null`;

/** For each filter that has an index of its own: the query that reads it. The last index is the slowest to read. */
function ownIndexes({ organizationId, filter, now }: KeySearch): OwnIndex[] {
  const { partnerId, status, name, lastFour, expiresBefore, createdBefore, lastUsedBefore } = filter;
  const keys = sql`select id from api_keys where organization_id = ${organizationId}`;
  const labels = labelsOf(organizationId, filter);
  const indexes = [
    partnerId && sql`${keys} and ${isOwnedBy(partnerId)}`,
    status === 'deleted' && sql`${keys} and ${isKept} and deleted_at is not null`,
    status === 'suspended' && sql`${keys} and ${isKept} and suspended_at is not null`,
    status === 'expired' && sql`${keys} and ${isKept} and expires_at <= ${now}`,
    name && sql`${keys} and ${isKept} and ${beginsWith(name)}`,
    lastFour && sql`${keys} and ${isKept} and last_four = ${lastFour}`,
    expiresBefore && sql`${keys} and ${isKept} and expires_at < ${expiresBefore}`,
    createdBefore && sql`${keys} and ${isKept} and created_at < ${createdBefore}`,
    filter.pastMaxLifetime &&
      sql`(${keys} and ${isKept} and expires_at is null
      union all ${keys} and ${isKept} and expires_at > ${latestExpiry(organizationId, now)})`,
    lastUsedBefore &&
      sql`select key_id as id from key_last_uses
      where organization_id = ${organizationId} and ${isUnusedSince(lastUsedBefore)}`,
    labels.length > 0 &&
      sql`${keys} and ${isKept} and key_labels(organization_id, scopes, metadata) @> array[${sql.join(labels)}]`,
  ];
  return indexes.filter((index) => typeof index === 'object');
}

/** The conditions on columns of the index `api_keys_by_organization`. */
function inIndex({ organizationId, filter, now }: KeySearch): RawBuilder<boolean> {
  const { partnerId, permission, name, lastFour, expiresBefore, createdBefore, lastUsedBefore } = filter;
  const conditions = [
    sql`organization_id = ${organizationId} and ${isKept} and ${statusCondition(filter, now)}`,
    partnerId && isOwnedBy(partnerId),
    permission && sql`permission = ${permission}`,
    name && beginsWith(name),
    lastFour && sql`last_four = ${lastFour}`,
    expiresBefore && sql`expires_at < ${expiresBefore}`,
    createdBefore && sql`created_at < ${createdBefore}`,
    filter.pastMaxLifetime &&
      sql`deleted_at is null and coalesce(expires_at, 'infinity') > ${latestExpiry(organizationId, now)}`,
    // A key is never used before its creation.
    lastUsedBefore && sql`created_at < ${lastUsedBefore}`,
  ];
  return allOf(conditions);
}

function hasRowFilters({ filter: { scope, metadata = [], lastUsedBefore } }: KeySearch): boolean {
  return scope !== undefined || metadata.length > 0 || lastUsedBefore !== undefined;
}

/** The conditions for which the row must be read. */
function inRow({ filter: { scope, metadata = [], lastUsedBefore } }: KeySearch): RawBuilder<boolean> {
  return allOf([
    sql`true`,
    scope !== undefined && sql`${scope} = any(scopes)`,
    ...metadata.map(
      ([member, text]) => sql`metadata ->> ${member}::text = ${text}
        and json_typeof(metadata -> ${member}::text) in ('string', 'number', 'boolean')`,
    ),
    lastUsedBefore &&
      sql`exists (select from key_last_uses where key_id = api_keys.id and ${isUnusedSince(lastUsedBefore)})`,
  ]);
}

function allOf(conditions: ReadonlyArray<RawBuilder<unknown> | string | false | undefined>): RawBuilder<boolean> {
  const given = conditions.filter((condition) => typeof condition === 'object');
  return sql<boolean>`${sql.join(given, sql` and `)}`;
}

/** The rule of `statusOf` in policy.ts as SQL. */
function statusCondition({ status, restorableAfter }: KeyFilter, now: Date): RawBuilder<boolean> {
  const live = sql<boolean>`deleted_at is null`;
  const expired = sql<boolean>`coalesce(expires_at <= ${now}, false)`;
  switch (status) {
    case 'deleted':
      return sql<boolean>`deleted_at is not null`;
    case 'suspended':
      return sql<boolean>`${live} and suspended_at is not null`;
    case 'expired':
      return sql<boolean>`${live} and suspended_at is null and ${expired}`;
    case 'active':
      return sql<boolean>`${live} and suspended_at is null and not ${expired}`;
    case undefined:
      if (restorableAfter === undefined) return live;
      return sql<boolean>`(${live} or (deleted_at > ${restorableAfter} and delete_reason <> 'compromised'))`;
  }
}

/** Null without a maximum lifetime: then no key is past it. */
function latestExpiry(organizationId: OrganizationId, now: Date) {
  return sql`(select ${now}::timestamptz + max_key_lifetime_seconds * interval '1 second'
    from organizations where id = ${organizationId})`;
}

function isOwnedBy(partnerId: PartnerId | 'default') {
  return partnerId === 'default' ? sql`partner_id is null` : sql`partner_id = ${partnerId}`;
}

/** Compares characters, so that `%` and `_` have no special meaning. */
function beginsWith(name: string) {
  return sql`folded_name ^@ ${foldCase(name)}::text`;
}

function isUnusedSince(time: Date) {
  return sql`coalesce(last_used_at, key_created_at) < ${time}`;
}

/** As `key_labels` in the database makes them. */
function labelsOf(organizationId: OrganizationId, { scope, metadata = [] }: KeyFilter): RawBuilder<unknown>[] {
  const hash = (text: RawBuilder<unknown>) => sql`hashtextextended(${organizationId}::text || ${text}, 0)`;
  return [
    ...(scope === undefined ? [] : [hash(sql`' scope ' || ${scope}::text`)]),
    ...metadata.map(([member, text]) =>
      hash(sql`' metadata ' || json_build_array(${member}::text, ${text}::text)::text`),
    ),
  ];
}
