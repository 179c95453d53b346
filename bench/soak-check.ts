import pg from 'pg';
import { keepAliveClient } from '../test/support/keep-alive-client.ts';
import type { SoakTally, SoakTarget } from './soak-load.ts';

/** The load cannot predict these events: they depend on whether a verifier uses a key after its deletion. */
const unpredictableActions = ['key.used_after_deletion'];

/**
 * Compares the acknowledged requests with the database. The service must have stopped, because it then writes its usage.
 * @param eventsBefore the number of events before the load, by action
 */
export async function findDifferences(
  databaseUrl: string,
  tally: SoakTally,
  eventsBefore: Record<string, number>,
): Promise<string[]> {
  const differences: string[] = [];
  const eventsAfter = await countEvents(databaseUrl);
  const actions = new Set([...Object.keys(eventsAfter), ...Object.keys(tally.changes)]);
  for (const action of actions) {
    if (unpredictableActions.includes(action)) continue;
    const inHistory = (eventsAfter[action] ?? 0) - (eventsBefore[action] ?? 0);
    const acknowledged = tally.changes[action] ?? 0;
    if (inHistory !== acknowledged)
      differences.push(`${action}: ${inHistory} in history, ${acknowledged} acknowledged`);
  }
  const [usage] = await query(
    databaseUrl,
    `select coalesce(sum(allowed), 0)::int as allowed from (select allowed from usage_hours union all
       select allowed from usage_days) as written`,
  );
  if (usage?.['allowed'] !== tally.allowed) {
    differences.push(`allowed verifications: ${String(usage?.['allowed'])} in usage, ${tally.allowed} acknowledged`);
  }
  return differences;
}

export async function countEvents(databaseUrl: string): Promise<Record<string, number>> {
  const rows = await query(databaseUrl, 'select action, count(*)::int as count from history group by action');
  return Object.fromEntries(rows.map(({ action, count }) => [String(action), Number(count)]));
}

/** Lets the service verify its chain. @returns the number of events; undefined if the chain is invalid */
export async function verifyChain({ url, adminToken }: SoakTarget): Promise<number | undefined> {
  const client = keepAliveClient(url);
  try {
    const { body } = await client.send('/v1/history/verify?full=true', { token: adminToken });
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
