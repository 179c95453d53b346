import { dbQuery } from '../../test/support/database.ts';
import { keepAliveClient } from '../../test/support/keep-alive-client.ts';
import { dbSessions } from '../../test/support/sessions.ts';
import type { Outside } from './outside.ts';
import type { SoakTally, SoakTarget } from './session.ts';

/** The load cannot predict these events: they depend on when verifiers use a deleted key, and when jobs run. */
const unpredictableActions = ['key.used_after_deletion', 'key.expiry_announced', 'access_token.expiry_announced'];

/** Events of jobs that change records, with the records. */
const changedByJobs: Record<string, string> = {
  'key.purged': 'select from api_keys where purged_at is not null',
  'claim.expired': "select from claims where end_reason = 'expired'",
};

/**
 * Compares the acknowledged requests with the database. The service must have stopped, because it then writes its usage.
 * @param eventsBefore the number of events before the load, by action
 */
export async function findDifferences(
  databaseUrl: string,
  { tally, outside, eventsBefore }: { tally: SoakTally; outside: Outside; eventsBefore: Record<string, number> },
): Promise<string[]> {
  const differences: string[] = [];
  const eventsAfter = await countEvents(databaseUrl);
  const actions = new Set([eventsAfter, tally.changes, changedByJobs].flatMap((of) => Object.keys(of)));
  for (const action of actions) {
    if (unpredictableActions.includes(action)) continue;
    const inHistory = (eventsAfter[action] ?? 0) - (eventsBefore[action] ?? 0);
    const records = changedByJobs[action];
    const expected =
      records === undefined ? (tally.changes[action] ?? 0) : (await dbQuery(databaseUrl, records)).length;
    if (inHistory !== expected) differences.push(`${action}: ${inHistory} in history, ${expected} expected`);
  }
  const [usage] = await dbQuery(
    databaseUrl,
    `select coalesce(sum(allowed), 0)::int as allowed, coalesce(sum(rate_limited), 0)::int as "rateLimited"
     from (select allowed, rate_limited from usage_hours union all select allowed, rate_limited from usage_days) as written`,
  );
  for (const result of ['allowed', 'rateLimited'] as const) {
    if (usage?.[result] === tally[result]) continue;
    differences.push(`verifications, ${result}: ${usage?.[result]} in usage, ${tally[result]} acknowledged`);
  }
  return [...differences, ...(await findUndelivered(databaseUrl, outside)), ...(await findOpen(databaseUrl))];
}

/** Each event after the creation of the webhook must have arrived, except tests of other webhooks. */
async function findUndelivered(databaseUrl: string, { arrived }: Outside): Promise<string[]> {
  const events = await dbQuery(
    databaseUrl,
    `select sequence::int, action from history
     where chain like 'org%' and action <> 'webhook.tested'
       and sequence > (select min(sequence) from history where action = 'webhook.created' and chain like 'org%')`,
  );
  return events
    .filter(({ sequence }) => !arrived.has(Number(sequence)))
    .map(({ sequence, action }) => `event ${sequence}, ${action}, did not arrive at the webhook`);
}

/** What must not be left when the load is over. */
const leftovers: Record<string, string> = {
  'pending deliveries': "select from webhook_deliveries where status = 'pending'",
  'failed deliveries': "select from webhook_deliveries where status = 'failed'",
  'claims that are pending although they expired before the last run of the job':
    "select from claims where ended_at is null and expires_at < now() - interval '6 minutes'",
  'pending claims of deleted keys': `select from claims join api_keys on api_keys.id = claims.key_id
    where ended_at is null and deleted_at is not null`,
  'open recovery requests': "select from recovery_requests where status = 'open'",
  'failed jobs': 'select from job_runs where last_failed_at is not null',
  'expiries that were announced twice': `select from history where action = 'key.expiry_announced'
    group by key_id, canonical::jsonb -> 'details' -> 'daysLeft' having count(*) > 1`,
};

async function findOpen(databaseUrl: string): Promise<string[]> {
  const found: string[] = [];
  for (const [what, query] of Object.entries(leftovers)) {
    const { length } = await dbQuery(databaseUrl, query);
    if (length > 0) found.push(`${what}: ${length}`);
  }
  const open = await dbSessions(databaseUrl, "state like 'idle in transaction%'");
  return open.length > 0 ? [...found, `open transactions: ${open.length}`] : found;
}

export async function countEvents(databaseUrl: string): Promise<Record<string, number>> {
  const rows = await dbQuery(databaseUrl, 'select action, count(*)::int as count from history group by action');
  return Object.fromEntries(rows.map(({ action, count }) => [String(action), Number(count)]));
}

/**
 * Lets the service verify its chain, and compare its records with the events.
 * @returns the number of events; undefined if the chain is not valid, or a record differs
 */
export async function verifyChain({ url, adminToken }: SoakTarget): Promise<number | undefined> {
  const client = keepAliveClient(url);
  try {
    const { body } = await client.send('/v1/history/verify?full=true', { token: adminToken });
    const { valid, events, stateDifferences } = JSON.parse(body);
    return valid === true && stateDifferences.length === 0 ? events : undefined;
  } finally {
    client.close();
  }
}
