import { type Selectable, sql } from 'kysely';
import { pruneInBatches } from '../database/batches.ts';
import { type Db, type Tx, writeTransaction } from '../database/client.ts';
import { currentTime } from '../database/credential.ts';
import type { IdempotencyKeysTable } from '../database/tables/idempotency-keys.ts';
import type { Transactor } from '../database/work.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { dayMs, minuteMs } from '../lib/durations.ts';

/** How long a repeated request is not executed again. */
const requestRetentionMs = dayMs;

/** How long a reply that contains a plaintext is replayed. */
const plaintextRetentionMs = 15 * minuteMs;

/** A completed request with an `Idempotency-Key`, and its sealed reply while it is stored. */
export type CompletedRequest = Selectable<IdempotencyKeysTable>;

/** Finds a completed request; the result may be outdated and not yet removed. */
export async function findCompleted(db: Db, address: Buffer): Promise<CompletedRequest | undefined> {
  return db.selectFrom('idempotency_keys').selectAll().where('address', '=', address).executeTakeFirst();
}

export function isOutdated({ created_at }: CompletedRequest, now: Date): boolean {
  return now.getTime() - created_at.getTime() >= requestRetentionMs;
}

export function isPlaintextExpired({ has_plaintext, created_at }: CompletedRequest, now: Date): boolean {
  return has_plaintext && now.getTime() - created_at.getTime() >= plaintextRetentionMs;
}

/**
 * Takes a lock until the transaction ends. The next statement sees what the previous holder committed.
 * @returns false if another transaction holds the lock
 */
export async function tryLock(tx: Tx, address: Buffer): Promise<boolean> {
  const { rows } = await sql<{ held: boolean }>`
    select pg_try_advisory_xact_lock(${address.readBigInt64BE()}::bigint) as held`.execute(tx);
  return rows[0]?.held === true;
}

export async function deleteCompleted(tx: Tx, address: Buffer): Promise<void> {
  await tx.deleteFrom('idempotency_keys').where('address', '=', address).execute();
}

export async function insertCompleted(tx: Tx, done: CompletedRequest): Promise<void> {
  await tx.insertInto('idempotency_keys').values(done).execute();
}

export async function eraseReply(db: Db, address: Buffer): Promise<void> {
  await writeTransaction(db).execute((tx) => erase(tx).where('address', '=', address).execute());
}

/** Erases an organization's replies with plaintexts. Called when the organization forbids reveals. */
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

/** Erases expired plaintexts and deletes outdated requests. @returns the number of deleted requests */
export async function pruneIdempotency(from: From, batchSize?: number): Promise<number> {
  const until = new Date((await currentTime(from.db, from.clock)).getTime() - plaintextRetentionMs);
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
  return pruneInBatches(from, { keptMs: requestRetentionMs, batchSize, deleteOldest });
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
