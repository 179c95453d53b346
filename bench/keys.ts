import { newId, type OrganizationId } from '../src/domain/ids.ts';
import { dbQuery } from '../test/support/database.ts';
import { crowdFilters, dbAddKeyCrowd } from '../test/support/key-crowds.ts';
import { startTestbed } from './testbed.ts';

// `npm run bench:keys [keys]` measures the response time of a page of keys for each filter, alone and with a partner or a
// status, and the time of a bulk request. Exits with 1 if a page takes longer than the limit.

const keys = Number(process.argv[2] ?? 400_000);
const limitMs = 100;
const rounds = 3;
const pagesAhead = 10;
const log = (message: string) => process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${message}\n`);

const testbed = await startTestbed();
let missed = 0;
try {
  const { organizationId, adminToken } = testbed.bootstrapped;
  const { superuser } = testbed.urls;
  log(`writing ${keys} keys`);
  const indexes = await dbQuery(
    superuser,
    `select indexname as name, indexdef as definition from pg_indexes
     where tablename = any('{api_keys,key_last_uses}') and indexdef not like 'CREATE UNIQUE%'`,
  );
  for (const { name } of indexes) await dbQuery(superuser, `drop index ${name}`);
  await dbAddKeyCrowd(superuser, organizationId, keys);
  await addOthers(superuser, organizationId);
  for (const { definition } of indexes) await dbQuery(superuser, String(definition));
  await dbQuery(superuser, 'vacuum analyze api_keys');
  await dbQuery(superuser, 'vacuum analyze key_last_uses');
  const sizes = await dbQuery(
    superuser,
    `select indexrelname as name, pg_size_pretty(pg_relation_size(indexrelid)) as size from pg_stat_user_indexes
     where relname in ('api_keys', 'key_last_uses') order by indexrelname`,
  );
  for (const { name, size } of sizes) log(`${String(name).padEnd(36)} ${size}`);
  const server = await testbed.startLatchkey();
  const headers = { authorization: `Bearer ${adminToken.reveal()}`, 'content-type': 'application/json' };

  async function request(method: string, path: string, body?: unknown): Promise<{ ms: number; body: Reply }> {
    const startedAtMs = performance.now();
    const init = { method, headers, ...(body === undefined ? {} : { body: JSON.stringify(body) }) };
    const response = await fetch(`http://127.0.0.1:${server.port}/v1/keys${path}`, init);
    const reply = (await response.json()) as Reply;
    if (!response.ok) throw new Error(`${method} ${path}: ${JSON.stringify(reply)}`);
    return { ms: performance.now() - startedAtMs, body: reply };
  }

  async function measure(label: string, query: Record<string, string>): Promise<string | null> {
    const timesMs: number[] = [];
    let last: Reply = {};
    for (let round = 0; round < rounds; round++) {
      const { ms, body } = await request('GET', `?${new URLSearchParams(query)}`);
      timesMs.push(ms);
      last = body;
    }
    timesMs.sort((one, other) => one - other);
    const [median = 0, maximum = 0] = [timesMs[Math.floor(rounds / 2)], timesMs.at(-1)];
    if (maximum > limitMs) missed += 1;
    const figures = `${median.toFixed(1).padStart(8)} ${maximum.toFixed(1).padStart(8)}`;
    const found = String(last.data?.length ?? 0).padStart(3);
    log(`${label.padEnd(64)} ${found} found ${figures} ms${maximum > limitMs ? '  MISSED' : ''}`);
    return last.nextCursor ?? null;
  }

  async function measurePages(label: string, query: Record<string, string>): Promise<void> {
    let cursor = await measure(label, query);
    if (cursor === null) return;
    for (let page = 2; page < pagesAhead; page++) {
      const { body } = await request('GET', `?${new URLSearchParams({ ...query, cursor })}`);
      if (body.nextCursor == null) break;
      cursor = body.nextCursor;
    }
    await measure(`${label}; page ${pagesAhead}`, { ...query, cursor });
  }

  const [one] = await dbQuery(
    superuser,
    "select partner_id from api_keys where partner_id is not null and name like 'rare%' order by id limit 1",
  );
  const partnerId = String(one?.['partner_id']);
  const companions: Array<[label: string, query: Record<string, string>]> = [
    ['', {}],
    [', partner', { partnerId }],
    ...['active', 'suspended', 'expired', 'deleted'].map((status): [string, Record<string, string>] => [
      `, ${status}`,
      { status },
    ]),
  ];
  log(`${''.padEnd(74)}   median      max of ${rounds}`);
  for (const [label, companion] of companions) await measurePages(`no filter${label}`, companion);
  for (const [name, values] of Object.entries(crowdFilters)) {
    for (const [amount, value] of Object.entries(values)) {
      for (const [label, companion] of companions) {
        await measurePages(`${name}, ${amount}${label}`, { [name]: value, ...companion });
      }
    }
  }
  // Half of the keys, all older than the others: the walk skips the newer half.
  const yearAgo = new Date(Date.now() - 365 * 86_400_000).toISOString();
  await measurePages('createdBefore, the older half', { createdBefore: yearAgo });
  await measurePages('lastUsedBefore and createdBefore, the older half', {
    createdBefore: yearAgo,
    lastUsedBefore: crowdFilters['lastUsedBefore']?.['almost all'] ?? '',
  });

  const keyIds = (
    await dbQuery(superuser, 'select id from api_keys where deleted_at is null order by id limit 1000')
  ).map(({ id }) => id);
  for (const change of [
    { action: 'suspend', dryRun: true },
    { action: 'suspend', reason: 'Bench' },
    { action: 'resume' },
    { action: 'delete' },
    { action: 'delete', reason: 'compromised' },
  ]) {
    const { ms, body } = await request('POST', '/bulk', { ...change, keyIds });
    log(`bulk ${JSON.stringify(change).padEnd(48)} ${body.changed?.length} keys ${ms.toFixed(0)} ms`);
  }
  log(`${missed === 0 ? 'met' : 'missed'}: every page within ${limitMs} ms`);
} finally {
  await testbed.stop();
}
process.exit(missed === 0 ? 0 : 1);

interface Reply {
  data?: unknown[];
  nextCursor?: string | null;
  changed?: unknown[];
}

/** Ten other organizations, with a tenth of the keys together. */
async function addOthers(superuser: string, organizationId: OrganizationId): Promise<void> {
  for (let index = 0; index < 10; index++) {
    const values = [organizationId, newId('org')];
    await dbQuery(
      superuser,
      `insert into organizations select other.* from organizations as one,
         jsonb_populate_record(one, jsonb_build_object('id', $2::text)) as other where one.id = $1`,
      values,
    );
    await dbQuery(
      superuser,
      `insert into api_keys select other.* from api_keys as one,
         jsonb_populate_record(one, jsonb_build_object('organization_id', $2::text, 'partner_id', null,
           'permission', 'read_write', 'slot', 1, 'deleted_at', now(), 'delete_reason', 'other',
           'id', overlay(one.id placing '01${index}' from 5 for 3))) as other
         where one.organization_id = $1 limit ${keys / 100}`,
      values,
    );
  }
}
