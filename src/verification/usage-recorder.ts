import type { FastifyBaseLogger } from 'fastify';
import type { ApiKeyRecord } from '../auth/store.ts';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import { createPeriodicWriter, type PeriodicWriter } from '../db/periodic-writer.ts';
import type { DeletedUses } from './deleted-uses.ts';
import { addUsage, type Usage } from './usage-store.ts';

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
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

const hourLengthMs = 3_600_000;
/** Small enough that making one does not hold up the requests of the moment. */
const keysInBatch = 500;

/** Keys that wait to be written while the database takes nothing, or are at hand. Past it, counts are dropped. */
const keysHeld = 100_000;

/** What a key has been used within an hour, as far as that is not written yet. */
interface Counter {
  /** Not the record: a counter stays for the hour, and records go as soon as they have changed or are not asked for. */
  readonly ids: Pick<Usage, 'organizationId' | 'partnerId' | 'keyId'>;
  readonly hourMs: number;
  allowed: number;
  denied: number;
  rateLimited: number;
  afterDeletion: number;
  /** 0: not yet. */
  lastUsedMs: number;
  isWaiting: boolean;
}

export function createUsageRecorder({ db, clock, deletedUses, logger }: UsageRecorderOptions): UsageRecorder {
  /** Those of one hour. They stay when they are written: to make thousands anew each second costs more than to count. */
  let counters = new Map<string, Counter>();
  let countersHourMs = 0;
  let waiting: Counter[] = [];
  let dropped = 0;

  function counterOf(key: ApiKeyRecord, nowMs: number): Counter {
    const hourMs = nowMs - (nowMs % hourLengthMs);
    if (hourMs !== countersHourMs || counters.size >= keysHeld) {
      counters = new Map();
      countersHourMs = hourMs;
    }
    const known = counters.get(key.id);
    if (known !== undefined) return known;
    const zeros = { allowed: 0, denied: 0, rateLimited: 0, afterDeletion: 0, lastUsedMs: 0 };
    const ids = { organizationId: key.organization_id, partnerId: key.partner_id, keyId: key.id };
    const counter = { ids, hourMs, ...zeros, isWaiting: false };
    counters.set(key.id, counter);
    return counter;
  }

  function wait(counter: Counter): boolean {
    if (counter.isWaiting) return true;
    if (waiting.length >= keysHeld) {
      dropped += 1;
      return false;
    }
    counter.isWaiting = true;
    waiting.push(counter);
    return true;
  }

  async function writeAll(): Promise<void> {
    const taken = waiting;
    waiting = [];
    for (let from = 0; from < taken.length; from += keysInBatch) {
      const batch = taken.slice(from, from + keysInBatch);
      const usages = batch.map(takeUsage);
      try {
        await addUsage(db, usages);
      } catch (error) {
        for (const [index, usage] of usages.entries()) putBack(batch[index], usage);
        for (const counter of taken.slice(from + keysInBatch)) requeue(counter);
        logger.warn({ err: error, rows: waiting.length, dropped }, 'Usage could not be written; it is kept for later.');
        return;
      }
    }
  }

  function putBack(counter: Counter | undefined, usage: Usage): void {
    if (counter === undefined || !wait(counter)) return;
    counter.allowed += usage.allowed;
    counter.denied += usage.denied;
    counter.rateLimited += usage.rateLimited;
    counter.afterDeletion += usage.afterDeletion;
    counter.lastUsedMs = Math.max(counter.lastUsedMs, usage.lastUsedMs);
  }

  function requeue(counter: Counter): void {
    counter.isWaiting = false;
    wait(counter);
  }

  function count(key: ApiKeyRecord, outcome: UseOutcome, uses: number, alsoAfterDeletion = false): void {
    const nowMs = clock.nowMs();
    const counter = counterOf(key, nowMs);
    if (!wait(counter)) return;
    counter[outcome] += uses;
    if (alsoAfterDeletion) counter.afterDeletion += 1;
    if (outcome === 'allowed') counter.lastUsedMs = nowMs;
  }

  const writer = createPeriodicWriter({
    isWaiting: () => waiting.length > 0 || deletedUses.isWaiting(),
    write: async () => void (await Promise.all([writeAll(), deletedUses.flush()])),
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

/** What was counted; the counter begins anew. */
function takeUsage(counter: Counter): Usage {
  const { ids, hourMs, allowed, denied, rateLimited, afterDeletion, lastUsedMs } = counter;
  Object.assign(counter, { allowed: 0, denied: 0, rateLimited: 0, afterDeletion: 0, lastUsedMs: 0, isWaiting: false });
  return { ...ids, hourMs, allowed, denied, rateLimited, afterDeletion, lastUsedMs };
}
