import { parseCronItem } from 'graphile-worker';
import { dayMs, minuteMs } from '../lib/durations.ts';
import type { Job } from './job.ts';
import type { JobRun } from './store.ts';

export type JobState = 'not_started' | 'waiting' | 'good' | 'failed' | 'overdue';

/** A job may miss runs, for example during a restart. After this many periods without a success it is overdue. */
const periodsAllowed = 3;

/**
 * The state of a job. `not_started`: no service that knows this job has run yet. `waiting`: its first run is not due
 * yet.
 * @param run the recorded runs; undefined if there are none
 */
export function stateOf({ schedule }: Job, run: JobRun | undefined, now: Date): JobState {
  if (run === undefined) return 'not_started';
  const { last_succeeded_at: succeeded, last_failed_at: failed, first_seen_at: firstSeen } = run;
  const lastGood = succeeded ?? firstSeen;
  if (now.getTime() - lastGood.getTime() > periodsAllowed * periodMsOf(schedule, now)) return 'overdue';
  if (failed !== null && failed > lastGood) return 'failed';
  return succeeded === null ? 'waiting' : 'good';
}

/** The longest run of letters and digits that an error message may keep: secrets and hashes are longer. */
const longestSafeRun = 24;

const longRun = new RegExp(`[0-9A-Za-z+/=]{${longestSafeRun + 1},}`, 'g');

/**
 * Describes an error for storage and display: name, SQLSTATE, and a message without anything that could be a secret.
 */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return typeof error;
  const { code } = error as { code?: unknown };
  const name = typeof code === 'string' ? `${error.name} ${code}` : error.name;
  const causes: unknown[] = error instanceof AggregateError ? error.errors.slice(0, 3) : [];
  const message = [error.message, ...causes.map(describeError)].join(' ');
  return `${name}: ${message.replace(longRun, '…').slice(0, 200)}`;
}

/** A year and a day: the rarest schedule is due once within this time. */
const longestPeriodMinutes = (366 * dayMs) / minuteMs;

/**
 * The time between the last two due times of a schedule.
 * @throws Error for an invalid schedule, or one that is never due
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
  throw new Error(`The schedule ${schedule} is never due`);
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
