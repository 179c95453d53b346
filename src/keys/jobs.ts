import { workInBatches } from '../database/batches.ts';
import { currentTime } from '../database/credential.ts';
import type { Transactor } from '../database/work.ts';
import type { Actor } from '../domain/actor.ts';
import { record } from '../history/record.ts';
import { dayMs, secondMs } from '../lib/durations.ts';
import {
  deleteExpiryNotices,
  insertExpiryNotices,
  lockKeysToAnnounce,
  lockKeysToPurge,
  markKeysPurged,
  organizationsWithExpiries,
  organizationsWithPurges,
} from './jobs-store.ts';

/** What is done to keys in the background. Each is safe to run twice, and by several at once. */

/** Keys in one transaction: it holds the chain's head while it records them. */
const batchSize = 100;

const jobActor = (name: string): Actor => ({ type: 'system', id: name, name, email: null });

interface KeyJobDeps {
  transactor: Transactor;
  signal?: AbortSignal;
}

/**
 * Removes hash, tag and sealed value of keys whose retention has ended, for good. From then on only history and usage
 * know them.
 * @returns how many were purged
 */
export async function purgeDeletedKeys({
  transactor,
  retentionSeconds,
  signal,
}: KeyJobDeps & { retentionSeconds: number }): Promise<number> {
  const endedAt = (now: Date) => new Date(now.getTime() - retentionSeconds * secondMs);
  const now = await currentTime(transactor.db, transactor.clock);
  return workInBatches({
    transactor,
    actor: jobActor('purge_keys'),
    organizationIds: await organizationsWithPurges(transactor.db, endedAt(now)),
    batchSize,
    signal,
    async step(work, count) {
      const keys = await lockKeysToPurge(work.tx, work.by.organizationId, endedAt(work.now), count);
      const ids = keys.map((key) => key.id);
      await markKeysPurged(work.tx, ids, work.now);
      for (const { id, partner_id, deleted_at, delete_reason } of keys) {
        const purgedAt = work.now.toISOString();
        const details = { deletedAt: deleted_at.toISOString(), deleteReason: delete_reason, purgedAt };
        record(work, { action: 'key.purged', keyId: id, partnerId: partner_id, details });
      }
      return keys.length;
    },
  });
}

/**
 * Records that live keys are about to expire: 7 days and 1 day ahead, once each for a key and its expiry. What comes
 * late, as for a key that was made with an hour to live, is told once and with the days that are really left.
 * @returns how many were looked at
 */
export async function announceExpiries({ transactor, signal }: KeyJobDeps): Promise<number> {
  const now = await currentTime(transactor.db, transactor.clock);
  return workInBatches({
    transactor,
    actor: jobActor('announce_expiries'),
    organizationIds: await organizationsWithExpiries(transactor.db, now),
    batchSize,
    signal,
    async step(work, count) {
      const keys = await lockKeysToAnnounce(work.tx, work.by.organizationId, work.now, count);
      for (const { id, partner_id, expires_at } of await insertExpiryNotices(work.tx, keys)) {
        const daysLeft = Math.ceil((expires_at.getTime() - work.now.getTime()) / dayMs);
        const details = { expiresAt: expires_at.toISOString(), daysLeft };
        record(work, { action: 'key.expiry_announced', keyId: id, partnerId: partner_id, details });
      }
      return keys.length;
    },
  });
}

/** Removes notes of what was announced, a day after the expiry: nothing is said of it from then on. @returns how many */
export async function forgetExpiryNotices({ db, clock }: Pick<Transactor, 'db' | 'clock'>): Promise<number> {
  const now = await currentTime(db, clock);
  return deleteExpiryNotices(db, new Date(now.getTime() - dayMs));
}
