import { sql } from 'kysely';
import type { OrganizationId } from '../core/ids.ts';
import type { Db } from '../db/client.ts';
import { chainOf, firstPreviousHash, type Link, type StoredEvent } from './chain.ts';

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

const storedEventColumns = [
  'chain',
  'sequence',
  'id',
  'at',
  'action',
  'actor_id',
  'key_id',
  'partner_id',
  'canonical',
  'previous_hash',
  'hash',
] as const;

/** An event's place in its chain, as a cursor carries it. */
export const isSequence = (text: string): text is `${number}` => /^[1-9][0-9]{0,14}$/.test(text);

/** Newest first, `limit + 1` at most: the one too many tells that there is another page. */
export async function listEvents(
  db: Db,
  organizationId: OrganizationId | null,
  filter: HistoryFilter,
  page: { limit: number; beforeSequence: number | undefined },
): Promise<StoredEvent[]> {
  let query = db
    .selectFrom('history')
    .select(storedEventColumns)
    .where('chain', '=', chainOf(organizationId))
    .orderBy('sequence', 'desc')
    .limit(page.limit + 1);
  if (page.beforeSequence !== undefined) query = query.where('sequence', '<', page.beforeSequence);
  if (filter.keyId !== undefined) query = query.where('key_id', '=', filter.keyId);
  if (filter.partnerId !== undefined) query = query.where('partner_id', '=', filter.partnerId);
  if (filter.actorId !== undefined) query = query.where('actor_id', '=', filter.actorId);
  if (filter.action !== undefined) query = query.where('action', '=', filter.action);
  if (filter.from !== undefined) query = query.where('at', '>=', filter.from);
  if (filter.to !== undefined) query = query.where('at', '<', filter.to);
  return query.execute();
}

/** Whether the organization's history has ever spoken of this key or partner: it outlives them. */
export async function historyKnows(
  db: Db,
  organizationId: OrganizationId,
  subject: { keyId: string } | { partnerId: string },
): Promise<boolean> {
  const [column, id] =
    'keyId' in subject ? (['key_id', subject.keyId] as const) : (['partner_id', subject.partnerId] as const);
  const row = await db
    .selectFrom('history')
    .select('sequence')
    .where('chain', '=', chainOf(organizationId))
    .where(column, '=', id)
    .limit(1)
    .executeTakeFirst();
  return row !== undefined;
}

export interface ChainHead {
  chain: string;
  /** How many events the chain has; 0 where there is none. */
  sequence: number;
  hash: Buffer;
}

/** What the database keeps beside a chain as its end. */
export async function readHead(db: Db, chain: string): Promise<ChainHead> {
  const head = await db
    .selectFrom('history_heads')
    .select(['chain', 'sequence', 'hash'])
    .where('chain', '=', chain)
    .executeTakeFirst();
  return head ?? { chain, sequence: 0, hash: firstPreviousHash };
}

/** Every chain that has an end, by name, in batches; see `readHead`. */
export async function listHeads(db: Db, page: { after: string; limit: number }): Promise<ChainHead[]> {
  return db
    .selectFrom('history_heads')
    .select(['chain', 'sequence', 'hash'])
    .where('chain', '>', page.after)
    .orderBy('chain')
    .limit(page.limit)
    .execute();
}

/** Every chain that there are events of, or that has an end: also one that somebody has put there by hand. */
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

/** So few that neither the events of a batch nor what is done with them between two turns of the event loop is much. */
const batchSize = 250;

/** A batch ends with the event that reaches so many bytes of text. */
const batchBytes = 262_144;

/**
 * A chain from its first event to the one with the number `last`, in batches. Each is a query of its own, so no
 * connection is held while the reader is busy or slow. A batch is empty again as soon as the next one is asked for.
 */
export function readEvents(db: Db, chain: string, last: number): AsyncGenerator<StoredEvent[]> {
  return inBatches(db, { chain, last }, (range) => inRange(db, chain, range).select(storedEventColumns).execute());
}

/** The same, of each event only what the chain is made of. */
export function readLinks(db: Db, chain: string, last: number): AsyncGenerator<Link[]> {
  const columns = ['sequence', 'canonical', 'previous_hash', 'hash'] as const;
  return inBatches(db, { chain, last }, (range) => inRange(db, chain, range).select(columns).execute());
}

/** Of sequence numbers, both ends inclusive. */
interface Range {
  first: number;
  last: number;
}

/**
 * The range is that of the batch and has no limit beside it: with an open end Postgres, as long as it has no statistics of
 * a table that has grown quickly, reads and sorts all that is left of the chain for each batch.
 */
function inRange(db: Db, chain: string, { first, last }: Range) {
  return db
    .selectFrom(
      db
        .selectFrom('history')
        .select(storedEventColumns)
        .select(
          sql<number>`sum(octet_length(canonical)) over (order by sequence) - octet_length(canonical)`.as(
            'bytes_before',
          ),
        )
        .where('chain', '=', chain)
        .where('sequence', '>=', first)
        .where('sequence', '<=', last)
        .as('range'),
    )
    .where('bytes_before', '<', batchBytes)
    .orderBy('sequence');
}

async function* inBatches<Row extends { sequence: number }>(
  db: Db,
  { chain, last }: { chain: string; last: number },
  read: (range: Range) => Promise<Row[]>,
): AsyncGenerator<Row[]> {
  for (let first: number | undefined = 1; first !== undefined && first <= last; ) {
    const rows = await read({ first, last: Math.min(first + batchSize - 1, last) });
    const lastRead = rows.at(-1)?.sequence;
    first = lastRead === undefined ? await findNext(db, chain, first) : lastRead + 1;
    if (lastRead === undefined) continue;
    yield rows;
    // Spent results hang on to each other until the next full collection, and would keep the texts of all batches.
    rows.length = 0;
  }
}

/** Where a chain goes on behind a hole, which only somebody who tampers with it can make. */
async function findNext(db: Db, chain: string, after: number): Promise<number | undefined> {
  const { next } = await db
    .selectFrom('history')
    .select(({ fn }) => fn.min('sequence').as('next'))
    .where('chain', '=', chain)
    .where('sequence', '>', after)
    .executeTakeFirstOrThrow();
  return next ?? undefined;
}

/** The first event that stands outside of its chain: before the first, or behind the one that the head names as last. */
export async function findStray(db: Db, chain: string): Promise<number | undefined> {
  const { rows } = await sql<{ sequence: number | null }>`
    select coalesce(
      (select min(sequence) from history where chain = ${chain} and sequence < 1),
      (select min(sequence) from history where chain = ${chain}
        and sequence > coalesce((select sequence from history_heads where chain = ${chain}), 0))) as sequence`.execute(
    db,
  );
  return rows[0]?.sequence ?? undefined;
}
