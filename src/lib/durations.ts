/** Lengths of time in milliseconds. A day is one of UTC, which always has 24 hours. */
export const secondMs = 1_000;
export const minuteMs = 60 * secondMs;
export const hourMs = 60 * minuteMs;
export const dayMs = 24 * hourMs;

/** When the hour or the day of UTC began that a time is in. */
export function startOfPeriod(atMs: number, periodMs: number): number {
  return atMs - (atMs % periodMs);
}
