import type { Test } from 'tap';
import type { ClusterUrls } from './cluster.ts';
import { dbQuery } from './database.ts';
import { dbEndSessions, holdTransaction, untilBlocked } from './sessions.ts';

/** The allowed uses of each key, as stored in the database. */
export async function dbAllowed(url: string): Promise<Map<string, number>> {
  const rows = await dbQuery(url, 'select key_id as id, sum(allowed)::int as allowed from usage_hours group by 1');
  return new Map(rows.map(({ id, allowed }) => [String(id), Number(allowed)]));
}

/** Blocks writes of usage until released. */
export async function holdUsage(t: Test, { superuser }: ClusterUrls) {
  const holder = await holdTransaction(t, superuser, 'lock table usage_hours in share mode');
  const insert = '%insert into usage_hours%';
  return {
    untilWaiting: () => untilBlocked(superuser, insert),
    endWaiting: () => dbEndSessions(superuser, "wait_event_type = 'Lock' and query like $1", [insert]),
    release: () => holder.query('rollback'),
  };
}
