import { sql } from 'kysely';
import { createDatabaseClock, type DatabaseClock } from '../../src/database/clock.ts';

/** The database's clock plus the time by which a test has moved it. */
export interface TestClock extends DatabaseClock {
  /** @param ms negative to move it back */
  move(ms: number): void;
}

/** @param movedMs by how much it is ahead at first */
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
