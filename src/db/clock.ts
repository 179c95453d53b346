/** The database's time, known without asking it each time: the only clock that decides about expiry. */
export interface DatabaseClock {
  /** Milliseconds since 1970. Before the first sample: this machine's time. */
  nowMs(): number;
  /** A time that the database told, between sending the question and receiving the answer (monotonic milliseconds). */
  sample(databaseMs: number, sentAtMs: number, receivedAtMs: number): void;
}

/** A better sample than the present one is always taken; a worse one once the present one is this old. */
const sampleKeptMs = 10_000;

/**
 * @param shiftMs added to the database's time: tests move the clock with it
 */
export function createDatabaseClock(shiftMs: () => number = () => 0): DatabaseClock {
  let offsetMs = Date.now() - performance.now();
  let best: { roundTripMs: number; atMs: number } | undefined;
  return {
    nowMs: () => performance.now() + offsetMs + shiftMs(),
    sample(databaseMs, sentAtMs, receivedAtMs) {
      const roundTripMs = receivedAtMs - sentAtMs;
      const isWorse = best !== undefined && roundTripMs > best.roundTripMs;
      if (isWorse && best !== undefined && receivedAtMs - best.atMs < sampleKeptMs) return;
      best = { roundTripMs, atMs: receivedAtMs };
      offsetMs = databaseMs - (sentAtMs + receivedAtMs) / 2;
    },
  };
}
