import { setTimeout as delay } from 'node:timers/promises';
import type { Keyring } from '../crypto/keyring.ts';
import { SealBroken } from '../crypto/seal.ts';
import type { Db, Tx } from '../database/client.ts';
import { type Transactor, transact } from '../database/work.ts';
import type { Actor } from '../domain/actor.ts';
import { record } from '../history/record.ts';
import { pagesOf } from '../lib/batches.ts';

/** A record that stays as it is, because its row or its sealed value cannot be trusted. */
export interface Unopened {
  id: string;
  reason: SealBroken['reason'] | 'row_not_authentic';
}

export interface RekeyResult {
  renewed: number;
  unopened: Unopened[];
  /** Left for the next run, because somebody else held them locked all the time. */
  locked: number;
  /** Made under another entry while this ran: some process has another primary. */
  since: number;
}

/** How records of one kind are moved to the keyring's primary entry. A record is stale while it is not moved. */
export interface RekeyedKind<Stale extends { id: string }, Renewed extends { id: string }> {
  /** What history calls their number; null: the move is not recorded. */
  countedAs: 'keys' | 'webhookSecrets' | null;
  /** How many are stale, up to an id where one is given, and the last of them. */
  countStale(db: Db, primaryId: string, upTo: string | null): Promise<{ count: number; lastId: string | null }>;
  /** The next stale ones by id, locked against change. Those that another transaction has locked are skipped. */
  lockStale(tx: Tx, primaryId: string, page: { after: string; upTo: string; limit: number }): Promise<Stale[]>;
  /** @throws SealBroken */
  renew(keyring: Keyring, stale: Stale): Renewed | Unopened;
  /** The records must be locked. */
  store(tx: Tx, primaryId: string, renewed: readonly Renewed[]): Promise<void>;
}

interface RekeyDeps {
  transactor: Transactor;
  keyring: Keyring;
  /** Called after each batch. */
  onProgress?: (progress: { done: number; total: number }) => void;
}

const recordsInBatch = 100;
const lookAgainAfterMs = 250;
const lockedAllowedMs = 10_000;

const by = {
  actor: { type: 'system', id: 'rekey', name: 'rekey', email: null } satisfies Actor,
  organizationId: null,
  request: null,
};

/**
 * Moves every record of a kind to the primary entry, in short transactions beside a running service; a run that was killed
 * is continued by the next. Plaintexts are opened, so the start is recorded before the first of them.
 */
export async function rekey<Stale extends { id: string }, Renewed extends { id: string }>(
  { transactor, keyring, onProgress = () => undefined }: RekeyDeps,
  kind: RekeyedKind<Stale, Renewed>,
): Promise<RekeyResult> {
  const { db } = transactor;
  const primary = keyring.primary.id;
  const { count: total, lastId } = await kind.countStale(db, primary, null);
  if (lastId === null) return { renewed: 0, unopened: [], locked: 0, since: 0 };
  await recordStep('keyring.rekey_started', total, {});
  onProgress({ done: 0, total });
  let renewed = 0;
  for (let lockedForMs = 0; ; lockedForMs += lookAgainAfterMs) {
    const before = renewed;
    const unopened = await takePass(lastId);
    if (renewed > before) lockedForMs = 0;
    const left = await kind.countStale(db, primary, lastId);
    const locked = Math.max(0, left.count - unopened.length);
    if (locked === 0 || lockedForMs >= lockedAllowedMs) {
      await recordStep('keyring.rekeyed', renewed, { unopened: unopened.length, locked });
      const since = (await kind.countStale(db, primary, null)).count - left.count;
      return { renewed, unopened, locked, since };
    }
    await delay(lookAgainAfterMs);
  }

  async function recordStep(
    action: 'keyring.rekey_started' | 'keyring.rekeyed',
    count: number,
    details: Record<string, number>,
  ): Promise<void> {
    const { countedAs } = kind;
    if (countedAs === null) return;
    await transact(transactor, by, async (work) => {
      record(work, { action, details: { primary, [countedAs]: count, ...details } });
    });
  }

  /** Goes over all of them once, but for those that are locked at that moment. */
  async function takePass(upTo: string): Promise<Unopened[]> {
    const unopened: Unopened[] = [];
    const batches = pagesOf<Renewed | Unopened>((last) =>
      transact(transactor, by, async ({ tx }) => {
        const page = { after: last?.id ?? '', upTo, limit: recordsInBatch };
        const tried = (await kind.lockStale(tx, primary, page)).map(tryToRenew);
        await kind.store(tx, primary, tried.filter(isRenewed));
        return tried;
      }),
    );
    for await (const batch of batches) {
      for (const tried of batch) if (!isRenewed(tried)) unopened.push(tried);
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

  function isRenewed(tried: Renewed | Unopened): tried is Renewed {
    return !('reason' in tried);
  }
}
