import { type RawBuilder, sql } from 'kysely';

/** The database's clock: the only one that decides about dates. Waits and windows go by `performance.now()`. */
export interface DatabaseClock {
  /**
   * The database's time in milliseconds since 1970, known without asking: for what is shown, and for expiry. Before the first
   * sample: this machine's time.
   */
  nowMs(): number;
  /** The database's time in whole milliseconds, for a statement that stores it or returns it. Read once for each statement. */
  readonly sqlNow: RawBuilder<Date>;
  /** A time that the database returned, between sending the query and receiving the answer (monotonic milliseconds). */
  sample(databaseMs: number, sentAtMs: number, receivedAtMs: number): void;
}

/** A better sample than the present one is always taken; a worse one once the present one is this old. */
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
