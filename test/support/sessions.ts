import pg from 'pg';
import type { Test } from 'tap';
import { dbQuery } from './database.ts';
import { eventually } from './process.ts';

// Other databases of the cluster belong to tests that run at the same time.
const others = 'from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and';

/**
 * The other sessions of this database.
 * @param condition on the columns of `pg_stat_activity`
 */
export function dbSessions(url: string, condition: string, values: unknown[] = []) {
  return dbQuery(url, `select pid ${others} (${condition})`, values);
}

/** Terminates those sessions. */
export function dbEndSessions(url: string, condition: string, values: unknown[] = []) {
  return dbQuery(url, `select pid, pg_terminate_backend(pid) ${others} (${condition})`, values);
}

/**
 * Waits until a session waits for a lock.
 * @param query a pattern of SQL's `like`
 * @returns the process of that session
 */
export async function untilBlocked(url: string, query = '%'): Promise<number> {
  const blocked = () => dbSessions(url, `wait_event_type = 'Lock' and query like $1`, [query]);
  const [session] = await eventually(async () => {
    const sessions = await blocked();
    return sessions.length > 0 && sessions;
  });
  return Number(session?.['pid']);
}

/** Runs statements in a transaction, which stays open until its session ends it, or the test ends. */
export async function holdTransaction(t: Test, url: string, sql: string): Promise<pg.Client> {
  const session = new pg.Client({ connectionString: url, application_name: 'test' });
  await session.connect();
  t.teardown(() => session.end());
  await session.query(`begin; ${sql}`);
  return session;
}
