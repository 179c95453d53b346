import type { FastifyBaseLogger } from 'fastify';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { isRejection } from '../database/pg-error.ts';
import { type BatchWriter, createBatchWriter } from '../lib/batch-writer.ts';
import { hourMs, secondMs, startOfPeriod } from '../lib/durations.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import type { DeletedUses } from './deleted-uses.ts';
import { addUsage, type KeyUsage } from './usage-store.ts';

/** The result of a use, as usage counts it. */
export type UseOutcome = 'allowed' | 'denied' | 'rateLimited';

/** Counts uses of keys in memory, without waiting, and writes the counts every few seconds. */
export interface UsageRecorder extends Pick<BatchWriter<string, KeyUsage>, 'flush' | 'close'> {
  /** @param uses the number of uses; default 1 */
  add(key: ApiKeyRecord, outcome: UseOutcome, uses?: number): void;
  /** Records the use of a deleted key in history too. @param ip the client's address, if known */
  addUseOfDeletedKey(key: ApiKeyRecord, ip: string | null | undefined, options: { isCounted: boolean }): void;
}

interface UsageRecorderOptions {
  db: Db;
  clock: DatabaseClock;
  deletedUses: DeletedUses;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

/** Usage is visible within 10 s. A killed process loses the counts since its last flush. */
const flushEveryMs = 5 * secondMs;

/** Small enough that preparing a batch does not delay requests. */
const countsPerBatch = 1_000;

/** Pending counts, one per key and hour; further ones are dropped. */
const pendingCountsLimit = 200_000;

/** Creates the recorder; `close` writes pending counts. */
export function createUsageRecorder({ db, clock, deletedUses, logger }: UsageRecorderOptions): UsageRecorder {
  const writer = createBatchWriter<string, KeyUsage>({
    name: 'Usage',
    write: (batch) => addUsage(db, batch),
    batchSize: countsPerBatch,
    capacity: pendingCountsLimit,
    merge,
    isRejection,
    describe: ({ keyId, hour, allowed, denied, rateLimited }) => ({
      keyId,
      hour: new Date(hour),
      allowed,
      denied,
      rateLimited,
    }),
    logger,
    intervalMs: flushEveryMs,
  });

  function count(key: ApiKeyRecord, outcome: UseOutcome, uses: number, afterDeletion = 0): void {
    const nowMs = Math.floor(clock.nowMs());
    const hour = startOfPeriod(nowMs, hourMs);
    writer.add(`${key.id} ${hour}`, {
      organizationId: key.organization_id,
      partnerId: key.partner_id,
      keyId: key.id,
      hour,
      allowed: outcome === 'allowed' ? uses : 0,
      denied: outcome === 'denied' ? uses : 0,
      rateLimited: outcome === 'rateLimited' ? uses : 0,
      afterDeletion,
      lastUsedAt: outcome === 'allowed' ? nowMs : null,
    });
  }

  return {
    flush: async () => void (await Promise.all([writer.flush(), deletedUses.flush()])),
    close: async () => void (await Promise.all([writer.close(), deletedUses.close()])),
    add: (key, outcome, uses = 1) => count(key, outcome, uses),
    addUseOfDeletedKey(key, ip, { isCounted }) {
      if (isCounted) count(key, 'denied', 1, 1);
      deletedUses.note(key, ip);
    },
  };
}

function merge(pending: KeyUsage, more: KeyUsage): void {
  pending.allowed += more.allowed;
  pending.denied += more.denied;
  pending.rateLimited += more.rateLimited;
  pending.afterDeletion += more.afterDeletion;
  if (more.lastUsedAt !== null) pending.lastUsedAt = Math.max(pending.lastUsedAt ?? 0, more.lastUsedAt);
}
