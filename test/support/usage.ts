import type { Db } from '../../src/db/client.ts';
import { mergeRecentUsage, usageParts } from '../../src/verification/recent-usage.ts';
import { dbQuery } from './database.ts';

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
