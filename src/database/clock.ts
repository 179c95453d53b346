import { type RawBuilder, sql } from 'kysely';

/** The database's clock, which decides about all stored dates. Waits and windows use `performance.now()`. */
export interface DatabaseClock {
  /**
   * The database's time in milliseconds since 1970, estimated without a query: for replies and for expiry. Before the
   * first sample: this machine's time.
   */
  nowMs(): number;
  /**
   * The database's time in whole milliseconds, for a statement that stores or returns it. Evaluated once per statement.
   */
  readonly sqlNow: RawBuilder<Date>;
  /**
   * Takes a sample: a time that the database returned, between sending the query and receiving the reply (monotonic
   * milliseconds).
   */
  sample(databaseMs: number, sentAtMs: number, receivedAtMs: number): void;
}

/** A more precise sample replaces the current one; a less precise one only if the current one is older than this. */
const sampleKeptMs = 10_000;

export function createDatabaseClock(): DatabaseClock {
  let offsetMs = Date.now() - performance.now();
  let best: { roundTripMs: number; atMs: number } | undefined;
  return {
    nowMs: () => performance.now() + offsetMs,
    sqlNow: sql`(select date_trunc('milliseconds', clock_timestamp()))`,
    sample(databaseMs, sentAtMs, receivedAtMs) {
      const roundTripMs = receivedAtMs - sentAtMs;
      const isWorse = best !== undefined && roundTripMs > best.roundTripMs;
      if (isWorse && best !== undefined && receivedAtMs - best.atMs < sampleKeptMs) return;
      best = { roundTripMs, atMs: receivedAtMs };
      offsetMs = databaseMs - (sentAtMs + receivedAtMs) / 2;
    },
  };
}
