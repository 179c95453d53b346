import { sql } from 'kysely';
import { pruneInBatches } from '../db/batches.ts';
import type { Db, Tx } from '../db/client.ts';
import type { KeptReply } from '../db/schema.ts';
import type { Transactor } from '../db/work.ts';
import { dayMs } from '../lib/durations.ts';

/** How long a reply is replayed. */
const keptMs = dayMs;

/** A reply that was kept, and the request that it answered. */
export interface KeptAnswer {
  request_hash: Buffer;
  reply: KeptReply;
  created_at: Date;
}

/** Also one that is too old and has not been removed yet. */
export async function findAnswer(db: Db, address: Buffer): Promise<KeptAnswer | undefined> {
  return db
    .selectFrom('idempotency_keys')
    .select(['request_hash', 'reply', 'created_at'])
    .where('address', '=', address)
    .executeTakeFirst();
}

export function isTooOld({ created_at }: KeptAnswer, now: Date): boolean {
  return now.getTime() - created_at.getTime() >= keptMs;
}

/**
 * Held until the transaction ends. What a transaction before this one has committed can be read by the next statement.
 * @returns false where another transaction holds it
 */
export async function tryToHold(tx: Tx, address: Buffer): Promise<boolean> {
  const { rows } = await sql<{ held: boolean }>`
    select pg_try_advisory_xact_lock(${address.readBigInt64BE()}::bigint) as held`.execute(tx);
  return rows[0]?.held === true;
}

export async function insertAnswer(tx: Tx, address: Buffer, { reply, ...answer }: KeptAnswer): Promise<void> {
  await tx
    .insertInto('idempotency_keys')
    .values({ address, ...answer, reply: JSON.stringify(reply) })
    .execute();
}

export async function deleteAnswer(tx: Tx, address: Buffer): Promise<void> {
  await tx.deleteFrom('idempotency_keys').where('address', '=', address).execute();
}

/** Removes the replies that are too old to be replayed. @returns how many */
export function pruneIdempotency(from: Pick<Transactor, 'db' | 'clock'>, batchSize?: number): Promise<number> {
  return pruneInBatches(from, { keptMs, batchSize, deleteOldest });
}

function deleteOldest(tx: Tx, until: Date, count: number) {
  const oldest = tx
    .selectFrom('idempotency_keys')
    .select('address')
    .where('created_at', '<=', until)
    .orderBy('created_at')
    .limit(count);
  return tx.deleteFrom('idempotency_keys').where('address', 'in', oldest).executeTakeFirstOrThrow();
}
