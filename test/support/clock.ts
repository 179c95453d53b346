import { sql } from 'kysely';
import { createDatabaseClock, type DatabaseClock } from '../../src/database/clock.ts';

/** The database's clock, as far ahead as a test has moved it. */
export interface TestClock extends DatabaseClock {
  /** @param ms back where it is negative */
  move(ms: number): void;
}

/** @param movedMs how far ahead it begins */
export function createTestClock(movedMs = 0, clock: DatabaseClock = createDatabaseClock()): TestClock {
  let ahead = movedMs;
  return {
    nowMs: () => clock.nowMs() + ahead,
    get sqlNow() {
      return sql<Date>`(${clock.sqlNow} + ${ahead}::float8 * interval '1 millisecond')`;
    },
    sample: clock.sample,
    move(ms) {
      ahead += ms;
    },
  };
}
