import { sql } from 'kysely';
import type { OrganizationId } from '../core/ids.ts';
import type { Db } from '../db/client.ts';
import { chainOf, firstPreviousHash, isSoundLink, type StoredEvent } from './chain.ts';

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

export interface ChainVerdict {
  valid: boolean;
  /** How many events were read. */
  events: number;
  /** The last sound event's hash, lower-case hex; null for an empty history. */
  head: string | null;
  /** The first sequence number at which the chain is not as it was written; null where it is whole. */
  firstBadSequence: number | null;
}

const batchSize = 1_000;

/**
 * Recomputes a chain from its first event, in batches, so in constant memory. The head that the database keeps beside
 * it must agree, so a tail that was cut without touching the head shows too.
 */
export async function verifyChain(db: Db, organizationId: OrganizationId | null): Promise<ChainVerdict> {
  const chain = chainOf(organizationId);
  return db
    .transaction()
    .setIsolationLevel('repeatable read')
    .setAccessMode('read only')
    .execute(async (tx) => {
      let events = 0;
      let previousHash: Buffer = firstPreviousHash;
      for (;;) {
        const rows = await tx
          .selectFrom('history')
          .select(storedEventColumns)
          .where('chain', '=', chain)
          .where('sequence', '>', events)
          .orderBy('sequence')
          .limit(batchSize)
          .execute();
        for (const row of rows) {
          if (!isSoundLink(row, events + 1, previousHash)) return verdict(events, previousHash, events + 1);
          events += 1;
          previousHash = row.hash;
        }
        if (rows.length < batchSize) break;
      }
      const { rows: heads } = await sql<{ sequence: number; hash: Buffer }>`
        select sequence, hash from history_heads where chain = ${chain}`.execute(tx);
      const head = heads[0] ?? { sequence: 0, hash: firstPreviousHash };
      const whole = head.sequence === events && head.hash.equals(previousHash);
      return verdict(events, previousHash, whole ? null : events + 1);
    });
}

function verdict(events: number, head: Buffer, firstBadSequence: number | null): ChainVerdict {
  return {
    valid: firstBadSequence === null,
    events,
    head: events === 0 ? null : head.toString('hex'),
    firstBadSequence,
  };
}
