/** Durations in milliseconds. A day is a UTC day, which always has 24 hours. */
export const secondMs = 1_000;
export const minuteMs = 60 * secondMs;
export const hourMs = 60 * minuteMs;
export const dayMs = 24 * hourMs;

/** The start of the hour, or of the UTC day, of a time. */
export function startOfPeriod(atMs: number, periodMs: number): number {
  return atMs - (atMs % periodMs);
}

/** The first and the last time that RFC 3339 and Postgres can both represent. Milliseconds since 1970. */
export const earliestMs = Date.parse('0001-01-01T00:00:00.000Z');
export const latestMs = Date.parse('9999-12-31T23:59:59.999Z');
