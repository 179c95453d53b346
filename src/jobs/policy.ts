import type { Job } from './job.ts';
import { periodMsOf } from './schedule.ts';
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
