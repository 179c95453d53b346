import { type Selectable, sql } from 'kysely';
import { pruneInBatches } from '../database/batches.ts';
import { type Db, type Tx, writeTransaction } from '../database/client.ts';
import { currentTime } from '../database/credential.ts';
import type { IdempotencyKeysTable } from '../database/schema.ts';
import type { Transactor } from '../database/work.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { dayMs, minuteMs } from '../lib/durations.ts';

/** How long a request is not done again. */
const rememberedMs = dayMs;

/** How long a reply with a plaintext in it is replayed: enough for a retry. */
const plaintextKeptMs = 15 * minuteMs;

/** A request that was done under an `Idempotency-Key`, and its sealed reply while that is kept. */
export type DoneRequest = Selectable<IdempotencyKeysTable>;

/** Also one that is too old and has not been removed yet. */
export async function findDone(db: Db, address: Buffer): Promise<DoneRequest | undefined> {
  return db.selectFrom('idempotency_keys').selectAll().where('address', '=', address).executeTakeFirst();
}

export function isForgotten({ created_at }: DoneRequest, now: Date): boolean {
  return now.getTime() - created_at.getTime() >= rememberedMs;
}

export function isPlaintextExpired({ has_plaintext, created_at }: DoneRequest, now: Date): boolean {
  return has_plaintext && now.getTime() - created_at.getTime() >= plaintextKeptMs;
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

export async function deleteDone(tx: Tx, address: Buffer): Promise<void> {
  await tx.deleteFrom('idempotency_keys').where('address', '=', address).execute();
}

export async function insertDone(tx: Tx, done: DoneRequest): Promise<void> {
  await tx.insertInto('idempotency_keys').values(done).execute();
}

export async function eraseReply(db: Db, address: Buffer): Promise<void> {
  await writeTransaction(db).execute((tx) => erase(tx).where('address', '=', address).execute());
}

/** For an organization that no longer wants plaintexts to be kept. */
export async function erasePlaintextReplies(tx: Tx, organizationId: OrganizationId): Promise<void> {
  await erase(tx).where('organization_id', '=', organizationId).where('has_plaintext', '=', true).execute();
}

function erase(tx: Tx) {
  return tx
    .updateTable('idempotency_keys')
    .set({ sealed: null, sealed_keyring_id: null })
    .where('sealed', 'is not', null);
}

type From = Pick<Transactor, 'db' | 'clock'>;

/** Erases plaintexts that are no longer replayed, and removes what is forgotten. @returns how many were removed */
export async function pruneIdempotency(from: From, batchSize?: number): Promise<number> {
  const until = new Date((await currentTime(from.db, from.clock)).getTime() - plaintextKeptMs);
  await writeTransaction(from.db).execute((tx) =>
    erase(tx)
      .where('address', 'in', (query) =>
        query
          .selectFrom('idempotency_keys')
          .select('address')
          .where('has_plaintext', '=', true)
          .where('sealed', 'is not', null)
          .where('created_at', '<=', until)
          .forUpdate()
          .skipLocked(),
      )
      .execute(),
  );
  return pruneInBatches(from, { keptMs: rememberedMs, batchSize, deleteOldest });
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
