import { parseCronItem } from 'graphile-worker';
import { dayMs, minuteMs } from '../lib/durations.ts';

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
