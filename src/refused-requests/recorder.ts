import type { FastifyBaseLogger } from 'fastify';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { isRejection } from '../database/pg-error.ts';
import { type BatchWriter, createBatchWriter } from '../lib/batch-writer.ts';
import { hourMs, startOfPeriod } from '../lib/durations.ts';
import { addRefusals, type RefusedAttempts } from './store.ts';

/** One rejected attempt of a known caller. */
export type Refusal = Pick<RefusedAttempts, 'organizationId' | 'code'> & {
  caller: NonNullable<RefusedAttempts['caller']>;
  operation: string;
  /** Undefined if the connection was closed before its address was read. */
  ip: string | undefined;
};

/** Counts rejected attempts per hour and writes the counts in batches. Counting never waits. */
export interface RefusalRecorder extends Pick<BatchWriter<string, RefusedAttempts>, 'flush' | 'close'> {
  count(refusal: Refusal): void;
}

interface RefusalRecorderOptions {
  db: Db;
  clock: DatabaseClock;
  logger: Pick<FastifyBaseLogger, 'warn'>;
  bounds?: Partial<Bounds>;
}

/** Limits that callers cannot exceed by causing rejections on purpose. */
interface Bounds {
  /** Rows per organization, hour and replica. Beyond it, attempts are counted in one shared row per code. */
  rowsInHour: number;
  /** Rows that may wait to be written. Further rows are dropped. */
  rowsHeld: number;
}

const defaultBounds: Bounds = { rowsInHour: 200, rowsHeld: 10_000 };

const rowsInBatch = 500;

export function createRefusalRecorder({ db, clock, logger, bounds }: RefusalRecorderOptions): RefusalRecorder {
  const { rowsInHour, rowsHeld } = { ...defaultBounds, ...bounds };
  /** The rows of this hour for one caller and operation, by organization. */
  const rowsOf = new Map<string | null, Set<string>>();
  let currentHour = 0;
  const writer = createBatchWriter<string, RefusedAttempts>({
    name: 'Refused attempts',
    write: (batch) => addRefusals(db, batch),
    batchSize: rowsInBatch,
    capacity: rowsHeld,
    merge,
    isRejection,
    describe: ({ organizationId, caller, operation, code, count }) => ({
      organizationId,
      callerId: caller?.id,
      operation,
      code,
      count,
    }),
    logger,
  });

  function hasOwnRow({ organizationId, caller, operation, code }: Refusal, hour: number): boolean {
    if (hour !== currentHour || rowsOf.size >= rowsHeld) {
      rowsOf.clear();
      currentHour = hour;
    }
    const rows = rowsOf.get(organizationId) ?? new Set<string>();
    rowsOf.set(organizationId, rows);
    const row = `${code} ${operation} ${caller.id}`;
    if (rows.size < rowsInHour) rows.add(row);
    return rows.has(row);
  }

  return {
    flush: writer.flush,
    close: writer.close,
    count(refusal) {
      const { organizationId, caller, operation, code, ip } = refusal;
      const nowMs = clock.nowMs();
      const hour = startOfPeriod(nowMs, hourMs);
      const shown = hasOwnRow(refusal, hour) ? { caller, operation } : { caller: null, operation: null };
      const now = new Date(nowMs);
      const times = { hour: new Date(hour), firstAt: now, lastAt: now };
      const row = `${organizationId} ${hour} ${code} ${shown.operation} ${shown.caller?.id}`;
      writer.add(row, { organizationId, ...shown, code, count: 1, ...times, lastIp: ip ?? null });
    },
  };
}

function merge(known: RefusedAttempts, more: RefusedAttempts): void {
  known.count += more.count;
  if (more.firstAt < known.firstAt) known.firstAt = more.firstAt;
  if (more.lastAt < known.lastAt) return;
  known.lastAt = more.lastAt;
  known.lastIp = more.lastIp ?? known.lastIp;
  known.caller = more.caller;
}
