import { parseCronItem } from 'graphile-worker';
import { dayMs, minuteMs } from '../lib/durations.ts';
import type { Job } from './job.ts';
import type { JobRun } from './store.ts';

export type JobState = 'not_started' | 'waiting' | 'good' | 'failed' | 'overdue';

/** A job may miss a run, such as in a restart; past this many periods without a good one somebody should know. */
const periodsAllowed = 3;

/**
 * How a job stands. `not_started`: no service has run here yet that knows it. `waiting`: it has not been due yet.
 * @param run what is known of its runs; undefined where nothing is
 */
export function stateOf({ schedule }: Job, run: JobRun | undefined, now: Date): JobState {
  if (run === undefined) return 'not_started';
  const { last_succeeded_at: succeeded, last_failed_at: failed, first_seen_at: firstSeen } = run;
  const lastGood = succeeded ?? firstSeen;
  if (now.getTime() - lastGood.getTime() > periodsAllowed * periodMsOf(schedule, now)) return 'overdue';
  if (failed !== null && failed > lastGood) return 'failed';
  return succeeded === null ? 'waiting' : 'good';
}

/** The longest run of letters and digits that an error may have: no secret and no hash is that short. */
const harmless = 24;

const unbroken = new RegExp(`[0-9A-Za-z+/=]{${harmless + 1},}`, 'g');

/** An error as it may be kept and shown: what it is called, its SQLSTATE, and a message in which nothing can hide. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return typeof error;
  const { code } = error as { code?: unknown };
  const name = typeof code === 'string' ? `${error.name} ${code}` : error.name;
  const causes: unknown[] = error instanceof AggregateError ? error.errors.slice(0, 3) : [];
  const message = [error.message, ...causes.map(describeError)].join(' ');
  return `${name}: ${message.replace(unbroken, '…').slice(0, 200)}`;
}

/** A year and a day: the rarest schedule is due once within it. */
const longestPeriodMinutes = (366 * dayMs) / minuteMs;

/**
 * How long it is between two times at which a schedule is due, as of a moment.
 * @throws Error for a schedule that is none, or that is never due
 */
export function periodMsOf(schedule: string, now: Date): number {
  const { match } = parseCronItem({ task: 'any', match: schedule });
  const lastMinute = Math.floor(now.getTime() / minuteMs);
  let latest: number | undefined;
  for (let minute = lastMinute; minute > lastMinute - 2 * longestPeriodMinutes; minute--) {
    if (!match(digestOf(new Date(minute * minuteMs)))) continue;
    if (latest !== undefined) return (latest - minute) * minuteMs;
    latest = minute;
  }
  throw new Error(`the schedule ${schedule} is never due`);
}

function digestOf(at: Date) {
  return {
    min: at.getUTCMinutes(),
    hour: at.getUTCHours(),
    date: at.getUTCDate(),
    month: at.getUTCMonth() + 1,
    dow: at.getUTCDay(),
  };
}
