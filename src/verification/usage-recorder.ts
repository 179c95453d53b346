import type { FastifyBaseLogger } from 'fastify';
import type { ApiKeyRecord } from '../auth/api-key-record.ts';
import { UseCounts } from '../core/use-counts.ts';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import { isRejection } from '../db/pg-error.ts';
import { type BatchWriter, createBatchWriter } from '../lib/batch-writer.ts';
import type { DeletedUses } from './deleted-uses.ts';
import { addRecentUsage, type Usage } from './recent-usage.ts';
import type { UsageMerger } from './usage-merger.ts';

export type UseOutcome = 'allowed' | 'denied' | 'rateLimited';

/** Counts how keys are used. Counting never waits; what was counted is written in batches. */
export interface UsageRecorder extends Pick<BatchWriter<UseCounts, UseCounts>, 'flush' | 'close'> {
  /** @param uses of this outcome */
  add(key: ApiKeyRecord, outcome: UseOutcome, uses?: number): void;
  /** A deleted key, which history is to tell of besides. @param ip the client's address, where it is known */
  addDeleted(key: ApiKeyRecord, ip: string | null | undefined, options: { isCounted: boolean }): void;
}

interface UsageRecorderOptions {
  db: Db;
  clock: DatabaseClock;
  deletedUses: DeletedUses;
  merger: UsageMerger;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

const hourLengthMs = 3_600_000;
/** Small enough that making one does not hold up the requests of the moment. */
const keysInBatch = 1_000;

/** Keys, each once for each hour, that wait to be written. Beyond it counts are dropped. */
const keysHeld = 100_000;

export function createUsageRecorder({ db, clock, deletedUses, merger, logger }: UsageRecorderOptions): UsageRecorder {
  const writer = createBatchWriter<UseCounts, UseCounts>({
    name: 'Usage',
    write,
    batchSize: keysInBatch,
    capacity: keysHeld,
    groupOf: ({ hour }) => hour,
    isRejection,
    onRejected: takeUsage,
    describe: ({ keyId, hour, allowed, denied, rateLimited }) => ({ keyId, hour, allowed, denied, rateLimited }),
    logger,
  });

  /** They stay with the record for the hour: to make thousands anew each second costs more than to count. */
  function countsOf(key: ApiKeyRecord, hour: number): UseCounts {
    if (key.useCounts.hour === hour) return key.useCounts;
    if (key.useCounts.hour === 0) key.useCounts.hour = hour;
    else key.useCounts = new UseCounts(key.id, hour);
    return key.useCounts;
  }

  /** What is counted while the batch is written waits for the next one. */
  async function write(batch: UseCounts[]): Promise<void> {
    const usages = batch.map(takeUsage);
    try {
      await addRecentUsage(db, batch[0]?.hour ?? 0, usages);
    } catch (error) {
      for (const [index, usage] of usages.entries()) giveBack(batch[index], usage);
      throw error;
    }
    merger.expect();
  }

  function count(key: ApiKeyRecord, outcome: UseOutcome, uses: number, alsoAfterDeletion = false): void {
    const nowMs = clock.nowMs();
    const hour = Math.floor(nowMs / hourLengthMs);
    const counts = countsOf(key, hour);
    if (!writer.add(counts, counts)) return;
    counts[outcome] += uses;
    if (alsoAfterDeletion) counts.afterDeletion += 1;
    if (outcome === 'allowed') counts.lastUsed = Math.floor(nowMs - hour * hourLengthMs);
  }

  return {
    flush: async () => void (await Promise.all([writer.flush(), deletedUses.flush()])),
    close: async () => void (await Promise.all([writer.close(), deletedUses.close()])),
    add: (key, outcome, uses = 1) => count(key, outcome, uses),
    addDeleted(key, ip, { isCounted }) {
      if (isCounted) count(key, 'denied', 1, true);
      deletedUses.note(key, ip);
    },
  };
}

/** What was counted. The counts start at zero again. */
function takeUsage(counts: UseCounts): Usage {
  const { keyId, allowed, denied, rateLimited, afterDeletion, lastUsed } = counts;
  counts.allowed = 0;
  counts.denied = 0;
  counts.rateLimited = 0;
  counts.afterDeletion = 0;
  counts.lastUsed = -1;
  return { keyId, allowed, denied, rateLimited, afterDeletion, lastUsed };
}

function giveBack(counts: UseCounts | undefined, usage: Usage): void {
  if (counts === undefined) return;
  counts.allowed += usage.allowed;
  counts.denied += usage.denied;
  counts.rateLimited += usage.rateLimited;
  counts.afterDeletion += usage.afterDeletion;
  counts.lastUsed = Math.max(counts.lastUsed, usage.lastUsed);
}
