import { dayMs, minuteMs } from '../lib/durations.ts';

/** When keys without use are suspended. */

/** How long before the suspension it is announced, at most. */
const longestNoticeMs = 7 * dayMs;

/** Usage is written every few seconds. A use that is not written yet must win over the suspension. */
const unwrittenUseMs = 5 * minuteMs;

/** How long before the suspension it is announced. A key that is idle for half of a short time is announced then. */
export function noticeMs(suspendAfterDays: number): number {
  const afterMs = suspendAfterDays * dayMs;
  return afterMs > longestNoticeMs ? longestNoticeMs : afterMs / 2;
}

/** The times that decide about an idle key at `now`. */
export interface IdleTimes {
  /** A key that is idle since then or longer is announced. */
  announceIdleSince: Date;
  /** A key that is idle since then or longer is suspended, if it was announced in time. */
  suspendIdleSince: Date;
  /** An announcement was in time if it was made then or before. */
  announcedUntil: Date;
}

export function idleTimesAt(now: Date, suspendAfterDays: number): IdleTimes {
  const notice = noticeMs(suspendAfterDays);
  const suspendMs = now.getTime() - suspendAfterDays * dayMs - unwrittenUseMs;
  return {
    announceIdleSince: new Date(suspendMs + notice),
    suspendIdleSince: new Date(suspendMs),
    announcedUntil: new Date(now.getTime() - notice),
  };
}

/** When an announced key is suspended, unless it is used. */
export function suspensionDue(idleSince: Date, announcedAt: Date, suspendAfterDays: number): Date {
  return new Date(
    Math.max(idleSince.getTime() + suspendAfterDays * dayMs, announcedAt.getTime() + noticeMs(suspendAfterDays)),
  );
}
