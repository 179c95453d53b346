import { type RawBuilder, sql } from 'kysely';
import type { Db } from '../database/client.ts';

/** The number of stale rows of a table, optionally up to an id, and the last of them. */
export async function countStaleRows(
  db: Db,
  table: 'access_tokens' | 'api_keys' | 'claims' | 'history_archives' | 'webhook_endpoints',
  isStale: RawBuilder<boolean>,
  upTo: string | null,
): Promise<{ count: number; lastId: string | null }> {
  const { rows } = await sql<{ count: number; lastId: string | null }>`
    select count(*)::int as count, max(id) as "lastId" from ${sql.table(table)}
    where ${isStale} and (${upTo}::text is null or id <= ${upTo})`.execute(db);
  return rows[0] ?? { count: 0, lastId: null };
}
