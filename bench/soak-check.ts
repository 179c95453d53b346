import pg from 'pg';
import { keepAliveClient } from '../test/support/keep-alive-client.ts';
import type { SoakBooks, SoakTarget } from './soak-load.ts';

/** Events that depend on chance: whether a deleted key was used again. */
const byChance = ['key.used_after_deletion'];

/**
 * Compares what was acknowledged with what the database holds. Usage is written at the end, so the service must have
 * stopped, or have flushed, before.
 * @param eventsBefore the actions that history had before, with their numbers
 */
export async function compareBooks(
  databaseUrl: string,
  books: SoakBooks,
  eventsBefore: Record<string, number>,
): Promise<string[]> {
  const differences: string[] = [];
  const recorded = await countEvents(databaseUrl);
  const actions = new Set([...Object.keys(recorded), ...Object.keys(books.acts)]);
  for (const action of actions) {
    if (byChance.includes(action)) continue;
    const inHistory = (recorded[action] ?? 0) - (eventsBefore[action] ?? 0);
    const done = books.acts[action] ?? 0;
    if (inHistory !== done) differences.push(`${action}: ${inHistory} in history, ${done} acknowledged`);
  }
  const [usage] = await query(
    databaseUrl,
    `select coalesce(sum(allowed), 0)::int as allowed from (select allowed from usage_hours union all
       select allowed from usage_days) as written`,
  );
  if (usage?.['allowed'] !== books.allowed) {
    differences.push(`usage has ${String(usage?.['allowed'])} that were allowed, ${books.allowed} were answered so`);
  }
  return differences;
}

export async function countEvents(databaseUrl: string): Promise<Record<string, number>> {
  const rows = await query(databaseUrl, 'select action, count(*)::int as count from history group by action');
  return Object.fromEntries(rows.map(({ action, count }) => [String(action), Number(count)]));
}

/** The chain as the service itself recomputes it. @returns how many events; undefined where it is not whole */
export async function verifyChain({ url, adminToken }: SoakTarget): Promise<number | undefined> {
  const client = keepAliveClient(url);
  try {
    const { body } = await client.ask('/v1/history/verify', { token: adminToken });
    const { valid, events } = JSON.parse(body) as { valid?: boolean; events?: number };
    return valid === true ? events : undefined;
  } finally {
    client.close();
  }
}

async function query(url: string, sql: string): Promise<Array<Record<string, unknown>>> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query<Record<string, unknown>>(sql)).rows;
  } finally {
    await client.end();
  }
}
