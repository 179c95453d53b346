import pg from 'pg';
import type { Test } from 'tap';
import type { Db } from '../../src/db/client.ts';
import { mergeRecentUsage, usageParts } from '../../src/verification/recent-usage.ts';
import type { ClusterUrls } from './cluster.ts';
import { dbQuery } from './database.ts';
import { eventually } from './process.ts';

/** How often each key was allowed something, by what is written in the database. */
export async function dbAllowed(url: string): Promise<Map<string, number>> {
  const rows = await dbQuery(
    url,
    `select key_id as id, sum(allowed)::int as allowed from (
       select key_id, allowed from usage_hours
       union all select use.* from usage_recent, unnest(key_ids, allowed) as use) as written
     group by 1`,
  );
  return new Map(rows.map(({ id, allowed }) => [String(id), Number(allowed)]));
}

/** What the service does within half a minute. */
export async function mergeUsage(db: Db): Promise<void> {
  for (const part of usageParts) while (await mergeRecentUsage(db, part));
}

/** As a service writes it down. @param hour as its beginning */
export async function dbWriteDown(
  { superuser }: ClusterUrls,
  hour: number,
  keyIds: string[],
  { allowed, lastUsed }: { allowed: number[]; lastUsed: number[] },
): Promise<void> {
  await dbQuery(
    superuser,
    `insert into usage_recent (part, hour, key_ids, allowed, last_used) select right(($2::text[])[1], 1), $1, $2, $3, $4`,
    [new Date(hour).toISOString(), keyIds, allowed, lastUsed],
  );
}

/** Until it is released, whatever is written to `usage_recent` waits. */
export async function holdRecentUsage(t: Test, { superuser }: ClusterUrls) {
  const holder = new pg.Client({ connectionString: superuser });
  await holder.connect();
  t.teardown(() => holder.end());
  await holder.query('begin; lock table usage_recent in share mode');
  const waiting = `from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query ~ $1`;
  const pattern = (act: 'insert' | 'delete') => [`\\m${act} (into|from) usage_recent`];
  return {
    untilWaiting: (act: 'insert' | 'delete') =>
      eventually(async () => (await dbQuery(superuser, `select 1 ${waiting}`, pattern(act))).length > 0),
    endWaiting: (act: 'insert' | 'delete') =>
      dbQuery(superuser, `select pg_terminate_backend(pid) ${waiting}`, pattern(act)),
    release: () => holder.query('rollback'),
  };
}
