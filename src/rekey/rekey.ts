import { setTimeout as delay } from 'node:timers/promises';
import { type RawBuilder, sql } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import { SealBroken } from '../crypto/seal.ts';
import type { Tx } from '../database/client.ts';
import { type Transactor, transact } from '../database/work.ts';
import { systemActor } from '../domain/actor.ts';
import { record } from '../history/record.ts';
import { pagesOf } from '../lib/batches.ts';

/** A record that was not renewed, because its row or its sealed value is not authentic. */
export interface Unopened {
  id: string;
  reason: SealBroken['reason'] | 'row_not_authentic';
}

export interface RekeyResult {
  renewed: number;
  unopened: Unopened[];
  /** Skipped because other transactions kept these records locked. The next run takes them. */
  locked: number;
  /** Created under another entry during the run: some process uses another primary. */
  since: number;
}

/** How to move records of one kind to the primary keyring entry. Records that are not moved yet are stale. */
export interface RekeyedKind<Stale extends { id: string }, Renewed extends { id: string }> {
  /** The event member for their number; null if the move is not recorded. */
  eventMember: 'keys' | 'webhookSecrets' | 'claims' | null;
  table: 'access_tokens' | 'api_keys' | 'claims' | 'history_archives' | 'webhook_endpoints';
  /** The condition for stale rows. */
  isStale(primaryId: string): RawBuilder<unknown>;
  /** @throws SealBroken */
  renew(keyring: Keyring, stale: Stale): Renewed | Unopened;
  /** The records must be locked. */
  store(tx: Tx, renewed: readonly Renewed[]): Promise<void>;
}

interface RekeyDeps {
  transactor: Transactor;
  /** Called after each batch. */
  onProgress?: (progress: { done: number; total: number }) => void;
}

const recordsInBatch = 100;
const retryAfterMs = 250;
const lockWaitMs = 10_000;

const by = {
  actor: systemActor('rekey'),
  organizationId: null,
  request: null,
};

/**
 * Moves all records of a kind to the primary entry, in short transactions beside a running service. A killed run can be
 * repeated. The start is recorded first, because plaintexts are decrypted.
 */
export async function rekey<Stale extends { id: string }, Renewed extends { id: string }>(
  { transactor, onProgress = () => undefined }: RekeyDeps,
  kind: RekeyedKind<Stale, Renewed>,
): Promise<RekeyResult> {
  const { db, keyring } = transactor;
  const primary = keyring.primary.id;
  const { count: total, lastId } = await countStale(null);
  if (lastId === null) return { renewed: 0, unopened: [], locked: 0, since: 0 };
  await recordStep('keyring.rekey_started', total, {});
  onProgress({ done: 0, total });
  let renewed = 0;
  for (let lockedForMs = 0; ; lockedForMs += retryAfterMs) {
    const before = renewed;
    const unopened = await runPass(lastId);
    if (renewed > before) lockedForMs = 0;
    const left = await countStale(lastId);
    const locked = Math.max(0, left.count - unopened.length);
    if (locked === 0 || lockedForMs >= lockWaitMs) {
      await recordStep('keyring.rekeyed', renewed, { unopened: unopened.length, locked });
      const since = (await countStale(null)).count - left.count;
      return { renewed, unopened, locked, since };
    }
    await delay(retryAfterMs);
  }

  /** The number of stale records, optionally up to an id, and the last of them. */
  async function countStale(upTo: string | null): Promise<{ count: number; lastId: string | null }> {
    const { rows } = await sql<{ count: number; lastId: string | null }>`
      select count(*)::int as count, max(id) as "lastId" from ${sql.table(kind.table)}
      where (${kind.isStale(primary)}) and (${upTo}::text is null or id <= ${upTo})`.execute(db);
    return rows[0] ?? { count: 0, lastId: null };
  }

  /** Locks the next stale records by id. Skips records that other transactions have locked. */
  async function lockStale(tx: Tx, after: string, upTo: string): Promise<Stale[]> {
    const { rows } = await sql<Stale>`
      select * from ${sql.table(kind.table)}
      where (${kind.isStale(primary)}) and id > ${after} and id <= ${upTo}
      order by id limit ${recordsInBatch} for no key update skip locked`.execute(tx);
    return rows;
  }

  async function recordStep(
    action: 'keyring.rekey_started' | 'keyring.rekeyed',
    count: number,
    details: Record<string, number>,
  ): Promise<void> {
    const { eventMember } = kind;
    if (eventMember === null) return;
    await transact(transactor, by, async (work) => {
      record(work, { action, details: { primary, [eventMember]: count, ...details } });
    });
  }

  /** Processes all stale records once, except those that are locked. */
  async function runPass(upTo: string): Promise<Unopened[]> {
    const unopened: Unopened[] = [];
    const batches = pagesOf<Renewed | Unopened>((last) =>
      transact(transactor, by, async ({ tx }) => {
        const results = (await lockStale(tx, last?.id ?? '', upTo)).map(tryToRenew);
        await kind.store(tx, results.filter(isRenewed));
        return results;
      }),
    );
    for await (const batch of batches) {
      for (const result of batch) if (!isRenewed(result)) unopened.push(result);
      renewed += batch.filter(isRenewed).length;
      onProgress({ done: renewed, total });
    }
    return unopened;
  }

  function tryToRenew(stale: Stale): Renewed | Unopened {
    try {
      return kind.renew(keyring, stale);
    } catch (error) {
      if (error instanceof SealBroken) return { id: stale.id, reason: error.reason };
      throw error;
    }
  }

  function isRenewed(result: Renewed | Unopened): result is Renewed {
    return !('reason' in result);
  }
}
