import { type RawBuilder, sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { chainOf, firstPreviousHash, longestEventBytes, type StoredEvent } from './chain.ts';
import type { ChainStart } from './chain-walk.ts';

export interface HistoryFilter {
  keyId?: string | undefined;
  partnerId?: string | undefined;
  actorId?: string | undefined;
  action?: string | undefined;
  /** Inclusive. */
  from?: Date | undefined;
  /** Exclusive. */
  to?: Date | undefined;
}

/** An event's sequence number as text in a cursor. */
export const isSequence = (text: string): text is `${number}` => /^[1-9][0-9]{0,14}$/.test(text);

/** An event's text; null if it exceeds `longestEventBytes`, so that it is not read. */
export const eventText = sql<string | null>`
  case when octet_length(canonical) <= ${sql.lit(longestEventBytes)} then canonical end`;

/** The columns of a `StoredEvent`. */
export const storedEvent = sql`chain, sequence, id, at, action, actor_id, key_id, partner_id, previous_hash, hash,
  ${eventText} as canonical`;

export type FilterColumn = 'key_id' | 'partner_id' | 'actor_id' | 'action';

/** The column sets that have an index, largest first. */
const filterIndexes: FilterColumn[][] = [
  ['key_id', 'actor_id', 'action'],
  ['partner_id', 'actor_id', 'action'],
  ['key_id', 'partner_id'],
  ['key_id', 'actor_id'],
  ['key_id', 'action'],
  ['partner_id', 'actor_id'],
  ['partner_id', 'action'],
  ['actor_id', 'action'],
  ['key_id'],
  ['partner_id'],
  ['actor_id'],
  ['action'],
];

/**
 * Matches rows by the index on the hash of chain and values. The exact comparison is wrapped in `case`, because the
 * planner would otherwise use it to choose another plan: walking the chain, or sorting.
 */
export function matches(chain: string, values: ReadonlyArray<readonly [FilterColumn, string]>) {
  const columns = values.map(([column]) => sql.ref(column));
  const texts = values.map(([, value]) => value);
  const hash = sql`hashtextextended(${sql.join([sql.ref('chain'), ...columns], sql` || ' ' || `)}, 0)`;
  return sql<boolean>`${hash} = hashtextextended(${[chain, ...texts].join(' ')}::text, 0)
    and ${isEqual([['chain', chain], ...values])}`;
}

function isEqual(values: ReadonlyArray<readonly [FilterColumn | 'chain', string]>) {
  const equal = values.map(([column, value]) => sql`${sql.ref(column)} = ${value}`);
  return sql`case when ${sql.join(equal, sql` and `)} then true end`;
}

/** Like `matches`, for several values of one column, in no order. */
export function matchesAny(chain: string, column: FilterColumn, values: readonly string[]) {
  return sql<boolean>`hashtextextended(chain || ' ' || ${sql.ref(column)}, 0) = any(array(
      select hashtextextended(${chain}::text || ' ' || value, 0) from unnest(${values}::text[]) as value))
    and case when chain = ${chain} and ${sql.ref(column)} = any(${values}::text[]) then true end`;
}

/**
 * Uses the index that covers the most columns and compares the rest. No index covers both key and partner with a third
 * column.
 */
function matchesFilter(chain: string, filter: HistoryFilter) {
  const given: Partial<Record<FilterColumn, string>> = {
    ...(filter.keyId === undefined ? {} : { key_id: filter.keyId }),
    ...(filter.partnerId === undefined ? {} : { partner_id: filter.partnerId }),
    ...(filter.actorId === undefined ? {} : { actor_id: filter.actorId }),
    ...(filter.action === undefined ? {} : { action: filter.action }),
  };
  const valuesOf = (columns: readonly FilterColumn[]) =>
    columns.flatMap((column) => {
      const value = given[column];
      return value === undefined ? [] : [[column, value] as const];
    });
  const usable = filterIndexes.filter((columns) => valuesOf(columns).length === columns.length);
  const [most] = usable;
  if (most === undefined) return sql<boolean>`chain = ${chain}`;
  const others = valuesOf(['key_id', 'partner_id', 'actor_id', 'action']).filter(([column]) => !most.includes(column));
  const alsoEqual = others.length === 0 ? [] : [sql`and ${isEqual(others)}`];
  // Two values may each be frequent and never occur together. The pair's own index shows that before any row is read.
  const pairs = others.length === 0 ? [] : usable.filter((columns) => columns.length === 2);
  const exist = pairs.map(
    (pair) => sql`and (select sequence from history where ${matches(chain, valuesOf(pair))}
      order by sequence desc limit 1) is not null`,
  );
  return sql<boolean>`${matches(chain, valuesOf(most))} ${sql.join([...alsoEqual, ...exist], sql` `)}`;
}

/** Newest first. Returns up to `limit + 1` events; the extra one only shows that there is another page. */
export async function listEvents(
  db: Db,
  organizationId: OrganizationId | null,
  filter: HistoryFilter,
  page: { limit: number; beforeSequence: number | undefined },
): Promise<StoredEvent[]> {
  const chain = chainOf(organizationId);
  return db.transaction().execute(async (tx) => {
    const range = await findRange(tx, chain, filter);
    if (range === undefined) return [];
    const last = Math.min(range.last, (page.beforeSequence ?? Number.POSITIVE_INFINITY) - 1);
    await preferIndexScans(tx);
    const query = listEventsQuery(chain, filter, { first: range.first, last, limit: page.limit });
    return (await query.execute(tx)).rows;
  });
}

/**
 * With outdated statistics Postgres would sort all matching rows instead of reading the newest from the index. Applies
 * to this transaction.
 */
export async function preferIndexScans(tx: Tx): Promise<void> {
  await sql`select set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true)`.execute(tx);
}

/** Limits the size of a page, so that a few readers of large events cannot keep the process busy. */
const pageBytes = 524_288;

/**
 * See `listEvents`; ends with the event that fills the page. The range uses constants, because Postgres assumes that
 * any other range is short, and sorts it.
 */
export function listEventsQuery(chain: string, filter: HistoryFilter, page: Range & { limit: number }) {
  return sql<StoredEvent>`select ${storedEvent} from (
      select *, coalesce(sum(octet_length(${eventText})) over (
        order by sequence desc rows between unbounded preceding and 1 preceding), 0) as bytes_before
      from (
        select * from history
        where ${matchesFilter(chain, filter)} and sequence >= ${page.first} and sequence <= ${page.last}
        order by sequence desc limit ${page.limit + 1}
      ) as newest
    ) as history where bytes_before <= ${pageBytes} order by sequence desc`;
}

/** The number of these events that form the page. */
export function countOfPage(events: readonly StoredEvent[], limit: number): number {
  const bytes = events.reduce((sum, { canonical }) => sum + Buffer.byteLength(canonical ?? ''), 0);
  return bytes > pageBytes ? Math.min(limit, events.length - 1) : limit;
}

/** A range of sequence numbers, both ends inclusive. */
export interface Range {
  first: number;
  last: number;
}

/**
 * The events between two times, found by the index on time: times grow with the sequence. Undefined if there are none.
 */
export async function findRange(
  db: Db,
  chain: string,
  { from, to }: Pick<HistoryFilter, 'from' | 'to'>,
): Promise<Range | undefined> {
  if (from === undefined && to === undefined) return { first: 1, last: Number.MAX_SAFE_INTEGER };
  const firstFrom = sql`(select sequence from history where chain = ${chain} and at >= ${from}
    order by at, sequence limit 1)`;
  const lastBefore = sql`(select sequence from history where chain = ${chain} and at < ${to}
    order by at desc, sequence desc limit 1)`;
  const { rows } = await sql<{ first: number | null; last: number | null }>`
    select ${from === undefined ? sql`1` : firstFrom} as first,
      ${to === undefined ? sql`${Number.MAX_SAFE_INTEGER}::bigint` : lastBefore} as last`.execute(db);
  const { first = null, last = null } = rows[0] ?? {};
  return first === null || last === null ? undefined : { first, last };
}

/** The key or partner whose events are read. */
export type HistorySubject = { keyId: string } | { partnerId: string };

/** Whether the organization's history mentions this key or partner, even if it no longer exists. */
export async function historyKnows(db: Db, organizationId: OrganizationId, subject: HistorySubject): Promise<boolean> {
  const { rows } = await sql`
    select from history where ${matchesFilter(chainOf(organizationId), subject)} limit 1`.execute(db);
  return rows.length > 0;
}

/** Where the stored part of a chain starts: after the archived events. Undefined if no event is stored. */
export async function readStoredStart(db: Db, chain: string): Promise<ChainStart | undefined> {
  const event = await db
    .selectFrom('history')
    .select(['sequence', 'previous_hash'])
    .where('chain', '=', chain)
    .where('sequence', '>', 0)
    .orderBy('sequence')
    .limit(1)
    .executeTakeFirst();
  return event && { sequence: event.sequence - 1, hash: event.previous_hash };
}

export interface ChainHead {
  chain: string;
  /** The number of events in the chain. */
  sequence: number;
  hash: Buffer;
}

/** The end of a chain as the database stores it beside the events. */
export async function readHead(db: Db, chain: string): Promise<ChainHead> {
  const head = await db
    .selectFrom('history_heads')
    .select(['chain', 'sequence', 'hash'])
    .where('chain', '=', chain)
    .executeTakeFirst();
  return head ?? { chain, sequence: 0, hash: firstPreviousHash };
}

/** Every stored chain head by name, in pages; see `readHead`. */
export async function listHeads(db: Db, page: { after: string; limit: number }): Promise<ChainHead[]> {
  return db
    .selectFrom('history_heads')
    .select(['chain', 'sequence', 'hash'])
    .where('chain', '>', page.after)
    .orderBy('chain')
    .limit(page.limit)
    .execute();
}

/** Every chain that has events or a head, including chains that were inserted by hand. */
export async function listChains(db: Db): Promise<string[]> {
  const { rows } = await sql<{ chain: string }>`
    with recursive named as (
      select min(chain) as chain from history
      union all
      select (select min(chain) from history where chain > named.chain) from named where named.chain is not null)
    select chain from named where chain is not null
    union
    select chain from history_heads where sequence > 0
    order by chain`.execute(db);
  return rows.map(({ chain }) => chain);
}

/** Small, to bound memory and the time between two turns of the event loop. */
const batchSize = 250;

/** A batch ends with the event that reaches this size. */
const batchBytes = 262_144;

/**
 * Reads a chain from the event after number `after` to number `last`, in batches. Each batch is its own query, so a slow reader holds
 * no connection. A batch is emptied when the next one is read.
 */
export function readEvents(db: Db, chain: string, last: number, after = 0): AsyncGenerator<StoredEvent[]> {
  return readColumns(db, storedEvent, { chain, after, last });
}

/** What an export line consists of, with the hashes in hexadecimal. */
export interface LinkText {
  sequence: number;
  /** Null if the text exceeds `longestEventBytes`. */
  canonical: string | null;
  previousHash: string;
  hash: string;
}

const linkText = sql`sequence, ${eventText} as canonical, encode(previous_hash, 'hex') as "previousHash",
  encode(hash, 'hex') as hash`;

/** Like `readEvents`, with the columns that an export needs: reading the others takes as long again. */
export function readLinkTexts(db: Db, chain: string, last: number, after = 0): AsyncGenerator<LinkText[]> {
  return readColumns(db, linkText, { chain, after, last });
}

/** The rows with these sequence numbers. */
export async function findEvents(db: Db, chain: string, sequences: readonly number[]): Promise<StoredEvent[]> {
  const { rows } = await sql<StoredEvent>`select ${storedEvent} from history
    where chain = ${chain} and sequence = any(${sequences}::bigint[])`.execute(db);
  return rows;
}

async function* readColumns<Row extends { sequence: number }>(
  db: Db,
  columns: RawBuilder<unknown>,
  { chain, after, last }: { chain: string; after: number; last: number },
): AsyncGenerator<Row[]> {
  // Each batch has both bounds. With an open end and outdated statistics, Postgres would sort the rest of the chain.
  const readFrom = async (first: number): Promise<Row[]> => {
    const { rows } = await sql<Row>`select ${columns} from (
        select *, sum(octet_length(canonical)) over (order by sequence) - octet_length(canonical) as bytes_before
        from history where chain = ${chain} and sequence >= ${first} and sequence <= ${Math.min(first + batchSize - 1, last)}
      ) as range where bytes_before < ${batchBytes} order by sequence`.execute(db);
    return rows;
  };
  for (let first: number | undefined = after + 1; first !== undefined && first <= last; ) {
    const rows = await readFrom(first);
    const lastRead = rows.at(-1)?.sequence;
    first = lastRead === undefined ? await findNext(db, chain, first) : lastRead + 1;
    if (lastRead === undefined) continue;
    yield rows;
    // Otherwise all earlier batches stay in memory until the next full garbage collection.
    rows.length = 0;
  }
}

/** The first event after a gap. Gaps only arise from tampering. */
async function findNext(db: Db, chain: string, after: number): Promise<number | undefined> {
  const { next } = await db
    .selectFrom('history')
    .select(({ fn }) => fn.min('sequence').as('next'))
    .where('chain', '=', chain)
    .where('sequence', '>', after)
    .executeTakeFirstOrThrow();
  return next ?? undefined;
}

/** Events outside the chain: before number 1, or after the one that the head names. */
export async function findStrays(
  db: Db,
  chain: string,
): Promise<Array<{ firstSequence: number; lastSequence: number }>> {
  const { rows } = await sql<{ first: number | null; last: number | null }>`
    select min(sequence) as first, max(sequence) as last from history where chain = ${chain} and sequence < 1
    union all
    select min(sequence), max(sequence) from history where chain = ${chain}
      and sequence > coalesce((select sequence from history_heads where chain = ${chain}), 0)`.execute(db);
  return rows.flatMap(({ first, last }) =>
    first === null || last === null ? [] : [{ firstSequence: first, lastSequence: last }],
  );
}
