import type { FastifyBaseLogger } from 'fastify';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import { createPeriodicWriter, type PeriodicWriter } from '../db/periodic-writer.ts';
import { addRefusals, type RefusedAttempts } from './refusals-store.ts';

/** One attempt of a known caller that was refused. */
export type Refusal = Pick<RefusedAttempts, 'organizationId' | 'code'> & {
  caller: NonNullable<RefusedAttempts['caller']>;
  operation: string;
  ip: string;
};

/** Counts refused attempts by the hour. Counting never waits; what was counted is written in batches. */
export interface RefusalRecorder extends PeriodicWriter {
  note(refusal: Refusal): void;
}

interface RefusalRecorderOptions {
  db: Db;
  clock: DatabaseClock;
  logger: Pick<FastifyBaseLogger, 'warn'>;
  bounds?: Partial<Bounds>;
}

/** What callers who ask for refusals on purpose can take up, in the table and here. */
interface Bounds {
  /** Rows that an organization gets in an hour, from each replica; past it, what is new is counted in one row for each code. */
  rowsInHour: number;
  /** Rows that wait while the database takes nothing. Past it, new ones are dropped. */
  rowsHeld: number;
}

const defaultBounds: Bounds = { rowsInHour: 200, rowsHeld: 10_000 };

const hourLengthMs = 3_600_000;
const rowsInBatch = 500;

export function createRefusalRecorder({ db, clock, logger, bounds }: RefusalRecorderOptions): RefusalRecorder {
  const { rowsInHour, rowsHeld } = { ...defaultBounds, ...bounds };
  /** What of this hour has rows of its own, by organization. */
  const told = new Map<string | null, Set<string>>();
  let toldHourMs = 0;
  let waiting = new Map<string, RefusedAttempts>();
  let dropped = 0;

  function hasOwnRow({ organizationId, caller, operation, code }: Refusal, hourMs: number): boolean {
    if (hourMs !== toldHourMs || told.size >= rowsHeld) {
      told.clear();
      toldHourMs = hourMs;
    }
    const names = told.get(organizationId) ?? new Set<string>();
    told.set(organizationId, names);
    const name = `${code} ${operation} ${caller.id}`;
    if (names.size < rowsInHour) names.add(name);
    return names.has(name);
  }

  function add(attempts: RefusedAttempts): void {
    const { organizationId, hour, caller, operation, code } = attempts;
    const name = `${organizationId} ${hour.getTime()} ${code} ${operation} ${caller?.id}`;
    const known = waiting.get(name);
    if (known !== undefined) merge(known, attempts);
    else if (waiting.size < rowsHeld) waiting.set(name, attempts);
    else dropped += attempts.count;
  }

  async function writeAll(): Promise<void> {
    const taken = [...waiting.values()];
    waiting = new Map();
    for (let from = 0; from < taken.length; from += rowsInBatch) {
      try {
        await addRefusals(db, taken.slice(from, from + rowsInBatch));
      } catch (error) {
        for (const attempts of taken.slice(from)) add(attempts);
        const facts = { err: error, rows: waiting.size, dropped };
        logger.warn(facts, 'Refused attempts could not be written; they are kept for later.');
        return;
      }
    }
  }

  return {
    ...createPeriodicWriter({ isWaiting: () => waiting.size > 0, write: writeAll }),
    note(refusal) {
      const { organizationId, caller, operation, code, ip } = refusal;
      const nowMs = clock.nowMs();
      const hourMs = nowMs - (nowMs % hourLengthMs);
      const place = hasOwnRow(refusal, hourMs) ? { caller, operation } : { caller: null, operation: null };
      const now = new Date(nowMs);
      const times = { hour: new Date(hourMs), firstAt: now, lastAt: now };
      add({ organizationId, ...place, code, count: 1, ...times, lastIp: ip });
    },
  };
}

function merge(known: RefusedAttempts, more: RefusedAttempts): void {
  known.count += more.count;
  if (more.firstAt < known.firstAt) known.firstAt = more.firstAt;
  if (more.lastAt < known.lastAt) return;
  known.lastAt = more.lastAt;
  known.lastIp = more.lastIp;
  known.caller = more.caller;
}
