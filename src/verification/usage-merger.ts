import type { FastifyBaseLogger } from 'fastify';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import { isRejection } from '../db/pg-error.ts';
import { limitedWarnings } from '../lib/limited-warnings.ts';
import { dropOldestUsage, mergeRecentUsage, rowsAtOnce, usageParts } from './recent-usage.ts';

/** Adds uses that were written down to the rows of their hours: each second those of one part of the keys. */
export interface UsageMerger {
  /** Something was written down, or may have been: one round goes through all parts. */
  expect(): void;
  /** Ends after the statement that is on its way. What is left is merged by another replica, or by the next start. */
  close(): Promise<void>;
}

interface UsageMergerOptions {
  db: Db;
  /** By which all replicas merge the same part in the same second, so that more has gathered for it. */
  clock: DatabaseClock;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

const mergeEveryMs = 1_000;
/** Keys that the log names where their usage is left out. */
const keysNamed = 10;

export function createUsageMerger({ db, clock, logger }: UsageMergerOptions): UsageMerger {
  let mergedSecond = secondOf(clock);
  /** What an earlier process has left may be in any part. */
  let lastSecond = mergedSecond + usageParts.length;
  let merging: Promise<void> | undefined;
  let isClosed = false;
  const warnOfFailure = limitedWarnings(logger);

  async function merge(): Promise<void> {
    const second = secondOf(clock);
    // A timer may come late, and a clock may be set.
    const due = Math.min(Math.max(second - mergedSecond, 0), usageParts.length);
    mergedSecond = second;
    try {
      for (let late = due - 1; late >= 0; late--) {
        await mergePart(usageParts[(second - late) % usageParts.length] ?? '');
      }
    } catch (error) {
      warnOfFailure({ err: error }, 'Usage could not be added to its hours; that is done later.');
      expect();
    }
  }

  /** A row that cannot be added up, such as one whose sum is out of range, is found by halving and left out. */
  async function mergePart(part: string): Promise<void> {
    let atOnce = rowsAtOnce;
    for (let mayBeMore = true; mayBeMore && !isClosed; ) {
      try {
        mayBeMore = await mergeRecentUsage(db, part, atOnce);
      } catch (error) {
        if (!isRejection(error)) throw error;
        if (atOnce === 1) await leaveOut(part, error);
        atOnce = atOnce === 1 ? rowsAtOnce : Math.ceil(atOnce / 2);
      }
    }
  }

  async function leaveOut(part: string, error: unknown): Promise<void> {
    const keyIds = (await dropOldestUsage(db, part)).slice(0, keysNamed);
    logger.warn({ err: error, keyIds }, 'Usage that the database cannot add up was left out.');
  }

  function expect(): void {
    lastSecond = secondOf(clock) + usageParts.length;
  }

  const timer = setInterval(() => {
    if (mergedSecond >= lastSecond) return;
    merging ??= merge().finally(() => {
      merging = undefined;
    });
  }, mergeEveryMs).unref();
  return {
    expect,
    async close() {
      clearInterval(timer);
      isClosed = true;
      await merging;
    },
  };
}

function secondOf(clock: DatabaseClock): number {
  return Math.floor(clock.nowMs() / 1_000);
}
