import type { FastifyBaseLogger } from 'fastify';
import type { ApiKeyRecord } from '../auth/store.ts';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import type { DeletedUses } from './deleted-uses.ts';
import { addUsage, type UsageRow } from './usage-store.ts';

export type UseOutcome = 'allowed' | 'denied' | 'rate_limited';

/** Counts how keys are used. Counting never waits; what was counted is written in batches. */
export interface UsageRecorder {
  add(key: ApiKeyRecord, outcome: UseOutcome): void;
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
const hourMs = 3_600_000;
/** Small enough that making one does not hold up the requests of the moment. */
const rowsInBatch = 500;

/** Rows held while the database does not take them: an hour of a hundred thousand keys. Past it, counts are dropped. */
const rowsHeld = 100_000;

export function createUsageRecorder({ db, clock, deletedUses, logger }: UsageRecorderOptions): UsageRecorder {
  /** By hour and by key: so that counting, which each request does, has no name to put together. */
  let counted = new Map<number, Map<string, UsageRow>>();
  let held = 0;
  let flushing: Promise<void> | undefined;
  let dropped = 0;

  function rowOf(key: ApiKeyRecord, nowMs: number): UsageRow | undefined {
    const hour = nowMs - (nowMs % hourMs);
    const known = counted.get(hour)?.get(key.id);
    if (known !== undefined) return known;
    if (held >= rowsHeld) return undefined;
    const row = {
      organization_id: key.organization_id,
      partner_id: key.partner_id,
      key_id: key.id,
      hour: new Date(hour),
      allowed: 0,
      denied: 0,
      rate_limited: 0,
      after_deletion: 0,
      last_used_at: null,
    };
    hold(row);
    return row;
  }

  function hold(row: UsageRow): void {
    const hour = row.hour.getTime();
    const rows = counted.get(hour) ?? new Map<string, UsageRow>();
    counted.set(hour, rows.set(row.key_id, row));
    held += 1;
  }

  async function writeAll(): Promise<void> {
    const rows = [...counted.values()].flatMap((ofHour) => [...ofHour.values()]);
    counted = new Map();
    held = 0;
    while (rows.length > 0) {
      const batch = rows.splice(0, rowsInBatch);
      try {
        await addUsage(db, batch);
      } catch (error) {
        for (const row of [...batch, ...rows]) putBack(row);
        logger.warn({ err: error, rows: held, dropped }, 'Usage could not be written; it is kept for later.');
        return;
      }
    }
  }

  function putBack(row: UsageRow): void {
    const present = counted.get(row.hour.getTime())?.get(row.key_id);
    if (present === undefined) {
      if (held < rowsHeld) hold(row);
      else dropped += 1;
      return;
    }
    present.allowed += row.allowed;
    present.denied += row.denied;
    present.rate_limited += row.rate_limited;
    present.after_deletion += row.after_deletion;
    present.last_used_at ??= row.last_used_at;
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

  function count(key: ApiKeyRecord, ...columns: Array<UseOutcome | 'after_deletion'>): void {
    const nowMs = clock.nowMs();
    const row = rowOf(key, nowMs);
    if (row === undefined) {
      dropped += 1;
      return;
    }
    for (const column of columns) row[column] += 1;
    if (columns.includes('allowed')) row.last_used_at = new Date(nowMs);
  }

  const timer = setInterval(() => {
    if (held > 0 || deletedUses.isWaiting()) void flush();
  }, flushEveryMs).unref();
  return {
    add: count,
    addDeleted(key, ip, { isCounted }) {
      if (isCounted) count(key, 'denied', 'after_deletion');
      deletedUses.note(key, ip);
    },
    flush,
    async close() {
      clearInterval(timer);
      await flush();
      if (held > 0) await flush();
    },
  };
}
