/** Durations in milliseconds. A day is a UTC day, which always has 24 hours. */
export const secondMs = 1_000;
export const minuteMs = 60 * secondMs;
export const hourMs = 60 * minuteMs;
export const dayMs = 24 * hourMs;

/** The start of the hour, or of the UTC day, of a time. */
export function startOfPeriod(atMs: number, periodMs: number): number {
  return atMs - (atMs % periodMs);
}
