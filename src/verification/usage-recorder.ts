import type { FastifyBaseLogger } from 'fastify';
import type { ApiKeyRecord } from '../auth/store.ts';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import type { DeletedUses } from './deleted-uses.ts';
import { addUsage, type UsageRow } from './usage-store.ts';

export type UseOutcome = 'allowed' | 'denied' | 'rate_limited';

/** Counts how keys are used. Counting never waits; what was counted is written in batches. */
export interface UsageRecorder {
  /** @param uses of this outcome */
  add(key: ApiKeyRecord, outcome: UseOutcome, uses?: number): void;
  /** A deleted key, which history is to tell of besides. @param ip the client's address, where it is known */
  addDeleted(key: ApiKeyRecord, ip: string | undefined, options: { isCounted: boolean }): void;
  /** Writes what is in memory. */
  flush(): Promise<void>;
  /** Stops the timer and writes the rest. */
  close(): Promise<void>;
}

interface UsageRecorderOptions {
  db: Db;
  clock: DatabaseClock;
  deletedUses: DeletedUses;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

const flushEveryMs = 1_000;
const hourLengthMs = 3_600_000;
/** Small enough that making one does not hold up the requests of the moment. */
const keysInBatch = 500;

/** Keys that wait to be written while the database takes nothing, or are at hand. Past it, counts are dropped. */
const keysHeld = 100_000;

/** What a key has been used within an hour, as far as that is not written yet. */
interface Counter {
  readonly key: ApiKeyRecord;
  readonly hourMs: number;
  allowed: number;
  denied: number;
  rate_limited: number;
  after_deletion: number;
  lastUsedMs: number | null;
  isWaiting: boolean;
}

const outcomes = ['allowed', 'denied', 'rate_limited', 'after_deletion'] as const;

export function createUsageRecorder({ db, clock, deletedUses, logger }: UsageRecorderOptions): UsageRecorder {
  /** Those of one hour. They stay when they are written: to make thousands anew each second costs more than to count. */
  let counters = new Map<string, Counter>();
  let countersHourMs = 0;
  let waiting: Counter[] = [];
  let flushing: Promise<void> | undefined;
  let dropped = 0;

  function counterOf(key: ApiKeyRecord, nowMs: number): Counter {
    const hourMs = nowMs - (nowMs % hourLengthMs);
    if (hourMs !== countersHourMs || counters.size >= keysHeld) {
      counters = new Map();
      countersHourMs = hourMs;
    }
    const known = counters.get(key.id);
    if (known !== undefined) return known;
    const zeros = { allowed: 0, denied: 0, rate_limited: 0, after_deletion: 0 };
    const counter = { key, hourMs, ...zeros, lastUsedMs: null, isWaiting: false };
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
      const rows = batch.map(takeRow);
      try {
        await addUsage(db, rows);
      } catch (error) {
        for (const [index, row] of rows.entries()) putBack(batch[index], row);
        for (const counter of taken.slice(from + keysInBatch)) requeue(counter);
        logger.warn({ err: error, rows: waiting.length, dropped }, 'Usage could not be written; it is kept for later.');
        return;
      }
    }
  }

  function putBack(counter: Counter | undefined, row: UsageRow): void {
    if (counter === undefined || !wait(counter)) return;
    for (const outcome of outcomes) counter[outcome] += row[outcome];
    counter.lastUsedMs ??= row.last_used_at?.getTime() ?? null;
  }

  function requeue(counter: Counter): void {
    counter.isWaiting = false;
    wait(counter);
  }

  /** One at a time: what is counted meanwhile goes with the next. */
  function flush(): Promise<void> {
    flushing ??= Promise.all([writeAll(), deletedUses.flush()])
      .then(() => undefined)
      .finally(() => {
        flushing = undefined;
      });
    return flushing;
  }

  function count(key: ApiKeyRecord, outcome: UseOutcome, uses: number, alsoAfterDeletion = false): void {
    const nowMs = clock.nowMs();
    const counter = counterOf(key, nowMs);
    if (!wait(counter)) return;
    counter[outcome] += uses;
    if (alsoAfterDeletion) counter.after_deletion += 1;
    if (outcome === 'allowed') counter.lastUsedMs = nowMs;
  }

  const timer = setInterval(() => {
    if (waiting.length > 0 || deletedUses.isWaiting()) void flush();
  }, flushEveryMs).unref();
  return {
    add: (key, outcome, uses = 1) => count(key, outcome, uses),
    addDeleted(key, ip, { isCounted }) {
      if (isCounted) count(key, 'denied', 1, true);
      deletedUses.note(key, ip);
    },
    flush,
    async close() {
      clearInterval(timer);
      await flush();
      if (waiting.length > 0) await flush();
    },
  };
}

/** What was counted, as a row to be added; the counter begins anew. */
function takeRow(counter: Counter): UsageRow {
  const { key, hourMs, allowed, denied, rate_limited, after_deletion, lastUsedMs } = counter;
  for (const outcome of outcomes) counter[outcome] = 0;
  counter.lastUsedMs = null;
  counter.isWaiting = false;
  return {
    organization_id: key.organization_id,
    partner_id: key.partner_id,
    key_id: key.id,
    hour: new Date(hourMs),
    allowed,
    denied,
    rate_limited,
    after_deletion,
    last_used_at: lastUsedMs === null ? null : new Date(lastUsedMs),
  };
}
