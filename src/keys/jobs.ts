import { workInBatches } from '../database/batches.ts';
import { currentTime } from '../database/credential.ts';
import type { Transactor } from '../database/work.ts';
import { systemActor } from '../domain/actor.ts';
import { record } from '../history/record.ts';
import { secondMs } from '../lib/durations.ts';
import { lockKeysToPurge, markKeysPurged, organizationsWithPurges } from './jobs-store.ts';

/** Background jobs for keys. Each may run twice, or several times at once. */

/** Keys per transaction. The transaction holds the lock on the chain's head while it records them. */
const batchSize = 100;

interface KeyJobDeps {
  transactor: Transactor;
  signal?: AbortSignal;
}

/**
 * Deletes hash, tag and sealed value of keys whose retention has ended. Only history and usage remain.
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
    actor: systemActor('purge_keys'),
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
