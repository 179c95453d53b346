import pg from 'pg';
import type { Test } from 'tap';
import type { ClusterUrls } from './cluster.ts';
import { dbQuery } from './database.ts';
import { eventually } from './process.ts';

/** The allowed uses of each key, as stored in the database. */
export async function dbAllowed(url: string): Promise<Map<string, number>> {
  const rows = await dbQuery(url, 'select key_id as id, sum(allowed)::int as allowed from usage_hours group by 1');
  return new Map(rows.map(({ id, allowed }) => [String(id), Number(allowed)]));
}

/** Blocks writes of usage until released. */
export async function holdUsage(t: Test, { superuser }: ClusterUrls) {
  const holder = new pg.Client({ connectionString: superuser });
  await holder.connect();
  t.teardown(() => holder.end());
  await holder.query('begin; lock table usage_hours in share mode');
  const waiting = `from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
    and query ~ 'insert into usage_hours'`;
  return {
    untilWaiting: () => eventually(async () => (await dbQuery(superuser, `select 1 ${waiting}`)).length > 0),
    endWaiting: () => dbQuery(superuser, `select pg_terminate_backend(pid) ${waiting}`),
    release: () => holder.query('rollback'),
  };
}
