import type { FastifyBaseLogger } from 'fastify';
import type { ApiKeyRecord } from '../auth/api-key-record.ts';
import { UseCounts } from '../core/use-counts.ts';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import { createPeriodicWriter, type PeriodicWriter } from '../db/periodic-writer.ts';
import type { DeletedUses } from './deleted-uses.ts';
import { addRecentUsage, type Usage } from './recent-usage.ts';
import type { UsageMerger } from './usage-merger.ts';

export type UseOutcome = 'allowed' | 'denied' | 'rateLimited';

/** Counts how keys are used. Counting never waits; what was counted is written in batches. */
export interface UsageRecorder extends PeriodicWriter {
  /** @param uses of this outcome */
  add(key: ApiKeyRecord, outcome: UseOutcome, uses?: number): void;
  /** A deleted key, which history is to tell of besides. @param ip the client's address, where it is known */
  addDeleted(key: ApiKeyRecord, ip: string | undefined, options: { isCounted: boolean }): void;
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

/** Keys, each once for each hour, that wait while the database takes nothing. Past it, counts are dropped. */
const keysHeld = 100_000;

export function createUsageRecorder({ db, clock, deletedUses, merger, logger }: UsageRecorderOptions): UsageRecorder {
  let waiting: UseCounts[] = [];
  let dropped = 0;

  /** They stay with the record for the hour: to make thousands anew each second costs more than to count. */
  function countsOf(key: ApiKeyRecord, hour: number): UseCounts {
    if (key.useCounts.hour === hour) return key.useCounts;
    if (key.useCounts.hour === 0) key.useCounts.hour = hour;
    else key.useCounts = new UseCounts(key.id, hour);
    return key.useCounts;
  }

  function wait(counts: UseCounts): boolean {
    if (counts.isWaiting) return true;
    if (waiting.length >= keysHeld) {
      dropped += 1;
      return false;
    }
    counts.isWaiting = true;
    waiting.push(counts);
    return true;
  }

  async function writeCounts(): Promise<void> {
    const taken = waiting;
    waiting = [];
    for (let from = 0; from < taken.length; ) {
      const batch = batchAt(taken, from);
      const hour = batch[0]?.hour ?? 0;
      const usages = batch.map(takeUsage);
      from += batch.length;
      try {
        await addRecentUsage(db, hour, usages);
        merger.expect();
      } catch (error) {
        for (const [index, usage] of usages.entries()) putBack(batch[index], usage);
        for (const counts of taken.slice(from)) requeue(counts);
        logger.warn({ err: error, rows: waiting.length, dropped }, 'Usage could not be written; it is kept for later.');
        return;
      }
    }
  }

  function putBack(counts: UseCounts | undefined, usage: Usage): void {
    if (counts === undefined || !wait(counts)) return;
    counts.allowed += usage.allowed;
    counts.denied += usage.denied;
    counts.rateLimited += usage.rateLimited;
    counts.afterDeletion += usage.afterDeletion;
    counts.lastUsed = Math.max(counts.lastUsed, usage.lastUsed);
  }

  function requeue(counts: UseCounts): void {
    counts.isWaiting = false;
    wait(counts);
  }

  function count(key: ApiKeyRecord, outcome: UseOutcome, uses: number, alsoAfterDeletion = false): void {
    const nowMs = clock.nowMs();
    const hour = Math.floor(nowMs / hourLengthMs);
    const counts = countsOf(key, hour);
    if (!wait(counts)) return;
    counts[outcome] += uses;
    if (alsoAfterDeletion) counts.afterDeletion += 1;
    if (outcome === 'allowed') counts.lastUsed = Math.floor(nowMs - hour * hourLengthMs);
  }

  const writer = createPeriodicWriter({
    isWaiting: () => waiting.length > 0 || deletedUses.isWaiting(),
    write: async () => void (await Promise.all([writeCounts(), deletedUses.flush()])),
  });
  return {
    ...writer,
    add: (key, outcome, uses = 1) => count(key, outcome, uses),
    addDeleted(key, ip, { isCounted }) {
      if (isCounted) count(key, 'denied', 1, true);
      deletedUses.note(key, ip);
    },
  };
}

/** What is written next: of one hour, and not too many. */
function batchAt(taken: readonly UseCounts[], from: number): UseCounts[] {
  const most = taken.slice(from, from + keysInBatch);
  const end = most.findIndex(({ hour }) => hour !== most[0]?.hour);
  return end < 0 ? most : most.slice(0, end);
}

/** What was counted; they begin anew. */
function takeUsage(counts: UseCounts): Usage {
  const { keyId, allowed, denied, rateLimited, afterDeletion, lastUsed } = counts;
  counts.allowed = 0;
  counts.denied = 0;
  counts.rateLimited = 0;
  counts.afterDeletion = 0;
  counts.lastUsed = -1;
  counts.isWaiting = false;
  return { keyId, allowed, denied, rateLimited, afterDeletion, lastUsed };
}
