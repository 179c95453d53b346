import type { Test } from 'tap';
import { createDatabaseClock } from '../src/database/clock.ts';
import { newId } from '../src/domain/ids.ts';
import { createRefusalRecorder, type Refusal } from '../src/refused-requests/recorder.ts';
import { listRefusals, pruneRefusals } from '../src/refused-requests/store.ts';
import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

const hourMs = 3_600_000;

/** Waits until this number of attempts is listed. */
async function refusalsOf(client: Client, attempts: number, headers: Record<string, string> = {}): Promise<Json[]> {
  return eventually(async () => {
    const { body } = await client.get('/v1/history?kind=refused', headers);
    const counted = body.data.reduce((sum: number, { count }: Json) => sum + count, 0);
    return counted >= attempts && body.data;
  });
}

async function readOnlyAdmin({ admin, as }: TestService): Promise<Client & { id: string }> {
  const input = { role: 'admin', scopes: ['read'], name: 'Rita Reader', email: 'rita@example.com' };
  const { body } = await admin.post('/v1/access-tokens', input);
  return { ...as(body.token), id: body.id };
}

t.test('rejected attempts of known callers are counted by caller, operation, reason and hour', async (t) => {
  const service = await startService(t, { limits: { callerLimit: 1e6, addressLimit: 1e6, revealLimit: 1 } });
  const { admin, verifier, operator, organizationId, as } = service;
  const reader = await readOnlyAdmin(service);
  const { body: key } = await admin.post('/v1/keys', { name: 'Presented here' });
  const { body: events } = await admin.get('/v1/history?limit=200');
  const inOrganization = { 'latchkey-organization': organizationId };

  for (let attempt = 0; attempt < 3; attempt++) t.equal((await reader.post('/v1/keys', {})).status, 403);
  t.equal((await verifier.get('/v1/keys')).status, 403);
  t.equal((await as(key.key).get('/v1/keys')).status, 403);
  t.equal((await admin.post('/v1/verify', { key: key.key, permission: 'read' })).status, 403);
  t.equal((await operator.post(`/v1/keys/${key.id}/reveal`, {}, inOrganization)).status, 403);
  t.equal((await admin.post(`/v1/keys/${key.id}/reveal`, {})).status, 200);
  t.equal((await admin.post(`/v1/keys/${key.id}/reveal`, {})).status, 429);
  // Not rejected, or of an unknown caller, or not a request of the management API.
  t.equal((await admin.get(`/v1/keys/${newId('key')}`)).status, 404);
  t.equal((await as('lk_a_nonsense').get('/v1/keys')).status, 401);
  t.equal((await verifier.post('/v1/verify', { key: key.key, permission: 'read', cost: 1_000 })).status, 200);

  const refusals = await refusalsOf(admin, 8);
  const summaries = refusals.map(({ caller, operation, status, code, count }) => [
    caller.type,
    caller.name,
    operation,
    status,
    code,
    count,
  ]);
  const names = { operator: 'First operator', admin: 'First admin', verifier: 'First verifier' };
  t.same(
    new Set(summaries.map((row) => JSON.stringify(row))),
    new Set(
      [
        ['admin', 'Rita Reader', 'createKey', 403, 'scope_missing', 3],
        ['verifier', names.verifier, 'listKeys', 403, 'forbidden', 1],
        ['api_key', 'Presented here', 'listKeys', 403, 'forbidden', 1],
        ['admin', names.admin, 'verifyKey', 403, 'forbidden', 1],
        ['operator', names.operator, 'revealKey', 403, 'forbidden', 1],
        ['admin', names.admin, 'revealKey', 429, 'rate_limited', 1],
      ].map((row) => JSON.stringify(row)),
    ),
  );
  const ofReader = refusals.find(({ caller }) => caller.id === reader.id);
  t.match(ofReader, { id: /^refusal_/, organizationId, lastIp: '127.0.0.1', caller: { email: 'rita@example.com' } });
  t.ok(ofReader.firstAt < ofReader.lastAt && Math.abs(Date.parse(ofReader.lastAt) - Date.now()) < 60_000);
  t.equal(Date.parse(ofReader.hour) % hourMs, 0);

  // Refused attempts are not events: only the one reveal was recorded.
  const { body: after } = await admin.get('/v1/history?limit=200');
  t.equal(after.data.length, events.data.length + 1);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('refused attempts can be filtered and paged; conflicting filters are rejected', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const reader = await readOnlyAdmin(service);
  for (const path of ['/v1/keys', '/v1/partners', '/v1/webhooks']) {
    t.equal((await verifier.get(path)).status, 403);
    t.equal((await reader.post(path, {})).status, 403);
  }
  const all = await refusalsOf(admin, 6);
  t.equal(all.length, 6);
  const list = async (query: string) => (await admin.get(`/v1/history?kind=refused&${query}`)).body.data as Json[];
  t.same(
    await list(`actorId=${reader.id}`),
    all.filter(({ caller }) => caller.id === reader.id),
  );
  t.same((await list('operation=createKey')).length, 1);
  t.same((await list('code=scope_missing')).length, 3);
  t.same(await list('code=rate_limited'), []);
  const newest = all.map(({ lastAt }) => lastAt).sort()[5];
  t.same(
    await list(`from=${newest}`),
    all.filter(({ lastAt }) => lastAt >= newest),
  );
  t.same(
    await list(`to=${newest}`),
    all.filter(({ firstAt }) => firstAt < newest),
  );

  const paged: Json[] = [];
  for (let cursor = ''; ; ) {
    const { body } = await admin.get(`/v1/history?kind=refused&limit=4${cursor}`);
    paged.push(...body.data);
    if (body.nextCursor === null) break;
    cursor = `&cursor=${body.nextCursor}`;
  }
  t.same(paged, all);

  const { body: events } = await admin.get('/v1/history?limit=1');
  const foreign = await admin.get(`/v1/history?kind=refused&cursor=${events.nextCursor}`);
  t.match(foreign, { status: 400, body: { code: 'cursor_invalid' } });
  for (const [query, path, why] of [
    [`kind=refused&keyId=${newId('key')}`, 'query.keyId', /kind=refused.*actorId/],
    [`kind=refused&partnerId=${newId('partner')}`, 'query.partnerId', /kind=refused/],
    ['kind=refused&action=key.created', 'query.action', /kind=refused.*operation/],
    ['operation=createKey', 'query.operation', /kind=events.*action/],
    ['kind=events&code=forbidden', 'query.code', /kind=events/],
    ['kind=refused&code=not_found', 'query.code', /./],
    ['kind=all', 'query.kind', /./],
  ] as const) {
    const { status, body } = await admin.get(`/v1/history?${query}`);
    t.equal(status, 400, query);
    t.match(body.errors, [{ path, message: why }], query);
  }
});

t.test('an organization sees its own refused attempts, operators those of the installation', async (t) => {
  const service = await startService(t);
  const { admin, operator, verifier, as } = service;
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  const otherAdmin = { role: 'admin', scopes: ['read'], name: 'Eve', email: 'eve@example.com' };
  const { body: token } = await operator.post('/v1/access-tokens', otherAdmin, inOther);
  const globalVerifier = { role: 'verifier', scopes: ['read'], name: 'Edge' };
  const { body: edge } = await operator.post('/v1/access-tokens', globalVerifier);

  await verifier.get('/v1/keys');
  await as(token.token).post('/v1/keys', {});
  await operator.post(`/v1/keys/${newId('key')}/reveal`, {}, inOther);
  await operator.post('/v1/keys', {}, { 'latchkey-organization': newId('org') });
  await operator.post(`/v1/keys/${newId('key')}/reveal`, {}, { 'latchkey-organization': newId('org') });
  await operator.post(`/v1/keys/${newId('key')}/reveal`, {}, { 'latchkey-organization': newId('org') });
  await as(edge.token).get('/v1/keys');

  const callersOf = (refusals: Json[]) => refusals.map(({ caller, count }) => `${caller.name} ${count}`).sort();
  t.same(callersOf(await refusalsOf(admin, 1)), ['First verifier 1']);
  t.same(callersOf(await refusalsOf(as(token.token), 2)), ['Eve 1', 'First operator 1']);
  t.same(callersOf(await refusalsOf(operator, 2, inOther)), ['Eve 1', 'First operator 1']);
  // Attempts at organizations that do not exist count for the installation.
  t.same(callersOf(await refusalsOf(operator, 3)), ['Edge 1', 'First operator 2']);
});

t.test('a rejected credential gives a count and a log line, but no row', async (t) => {
  const service = await startService(t, { limits: { callerLimit: 1e6, addressLimit: 3, revealLimit: 1e6 } });
  const { app, as, logLines, urls } = service;
  for (let attempt = 0; attempt < 5; attempt++) await as(`lk_a_nonsense${attempt}`).get('/v1/keys');
  await app.inject('/v1/keys');
  const { body: metrics } = await app.inject('/metrics');
  t.match(metrics, /^latchkey_refused_credentials_total\{code="token_malformed"\} 3$/m);
  t.match(metrics, /^latchkey_refused_credentials_total\{code="rate_limited"\} 3$/m);
  t.match(metrics, /^latchkey_refused_credentials_total\{code="unauthorized"\} 0$/m);
  const lines = logLines.filter((line) => /A credential was rejected/.test(line)).map((line) => JSON.parse(line));
  t.equal(lines.length, 3, 'no more lines than attempts that the address limit allows');
  t.match(lines[0], { code: 'token_malformed', operation: 'listKeys', ip: '127.0.0.1', reqId: /./ });
  await app.close();
  t.same(await dbQuery(urls.superuser, 'select 1 from refused_attempts'), []);
});

t.test('counts in memory are written at shutdown', async (t) => {
  const { app, verifier, urls } = await startService(t);
  await verifier.get('/v1/keys');
  await app.close();
  t.match(await dbQuery(urls.superuser, 'select operation, count from refused_attempts'), [
    { operation: 'listKeys', count: '1' },
  ]);
});

/** A recorder without a service, with the test's clock and limits. */
async function startRecorder(t: Test, bounds: { rowsInHour?: number; rowsHeld?: number }) {
  const service = await startService(t);
  const { client, organizationId, clock, logLines } = service;
  const warnings: Json[] = [];
  const logger = { warn: (facts: Json) => void warnings.push(facts) };
  const recorder = createRefusalRecorder({ db: client.db, clock, logger, bounds });
  t.teardown(() => recorder.close());
  const countOne = (input: Partial<Refusal> & { who?: string } = {}) => {
    const { who = 'token_1', ...others } = input;
    const caller = { type: 'verifier' as const, id: who, name: who, email: null };
    const organization = organizationId as Refusal['organizationId'];
    recorder.count({
      organizationId: organization,
      caller,
      operation: 'listKeys',
      code: 'forbidden',
      ip: '::1',
      ...others,
    });
  };
  const list = () => listRefusals(client.db, organizationId as never, {}, { limit: 1_000, before: undefined });
  return { ...service, recorder, countOne, list, warnings, logLines };
}

t.test('callers that cause rejections on purpose fill neither the table nor the memory', async (t) => {
  const { recorder, countOne, list, later } = await startRecorder(t, { rowsInHour: 10 });
  for (let attempt = 0; attempt < 5_000; attempt++)
    countOne({ who: `token_${attempt}`, operation: `op${attempt % 7}` });
  countOne({ who: 'token_3', operation: 'op3' });
  countOne({ who: 'somebody', code: 'rate_limited', ip: '::2' });
  await recorder.flush();
  const rows = await list();
  t.equal(rows.length, 12);
  const merged = rows.filter(({ caller }) => caller === null);
  t.same(merged.map(({ operation, code, count }) => [operation, code, count]).sort(), [
    [null, 'forbidden', 4_990],
    [null, 'rate_limited', 1],
  ]);
  t.equal(
    rows.find(({ caller }) => caller?.id === 'token_3')?.count,
    2,
    'a caller with its own row is still counted there',
  );

  // The next hour starts at zero, and merged attempts get no second row.
  for (let attempt = 0; attempt < 100; attempt++) countOne({ who: `later_${attempt}` });
  later(hourMs);
  countOne({ who: 'later_99' });
  await recorder.flush();
  const after = await list();
  t.equal(after.find(({ caller, code }) => caller === null && code === 'forbidden')?.count, 5_090);
  t.equal(after.find(({ caller }) => caller?.id === 'later_99')?.count, 1);
});

t.test('while the database is unavailable, counts are kept in memory up to the limit', async (t) => {
  const { recorder, countOne, list, warnings, urls } = await startRecorder(t, { rowsHeld: 5 });
  await dbQuery(urls.owner, 'alter table refused_attempts rename to gone');
  countOne({ who: 'token_1' });
  await recorder.flush();
  t.match(warnings, [{ rows: 1, dropped: 0 }]);
  countOne({ who: 'token_1', ip: '::2' });
  for (let attempt = 2; attempt < 10; attempt++) countOne({ who: `token_${attempt}` });
  await recorder.flush();
  t.equal(warnings.length, 1, 'an outage is not logged at each write');
  await dbQuery(urls.owner, 'alter table gone rename to refused_attempts');
  await recorder.flush();
  t.match(warnings[1], { dropped: 4 });
  const rows = await list();
  t.equal(rows.length, 5);
  t.match(
    rows.find(({ caller }) => caller?.id === 'token_1'),
    { count: 2, lastIp: '::2' },
  );
});

t.test('concurrent counts of several replicas add up without a deadlock', async (t) => {
  const { client, organizationId, list } = await startRecorder(t, {});
  const hour = new Date(Date.now() - (Date.now() % hourMs));
  const replicas = Array.from({ length: 8 }, () => {
    const clock = createDatabaseClock();
    return createRefusalRecorder({ db: client.db, clock, logger: { warn: (facts: unknown) => t.fail(String(facts)) } });
  });
  for (const [index, replica] of replicas.entries()) {
    const ids = Array.from({ length: 50 }, (_, id) => `token_${id}`);
    for (const id of index % 2 === 0 ? ids : ids.reverse()) {
      const caller = { type: 'admin' as const, id, name: 'A', email: null };
      const organization = organizationId as Refusal['organizationId'];
      replica.count({ organizationId: organization, caller, operation: 'x', code: 'forbidden', ip: '::1' });
    }
  }
  await Promise.all(replicas.map((replica) => replica.close()));
  const rows = (await list()).filter((row) => row.hour >= hour);
  t.equal(rows.length, 50);
  t.ok(rows.every(({ count }) => count === 8));
});

t.test('counts are deleted in batches after 90 days', async (t) => {
  const { recorder, countOne, list, client, clock, later } = await startRecorder(t, {});
  for (let attempt = 0; attempt < 25; attempt++) countOne({ who: `token_${attempt}` });
  later(89 * 24 * hourMs);
  countOne({ who: 'recent' });
  await recorder.flush();
  const prune = () => pruneRefusals({ db: client.db, clock }, 10);
  t.equal(await prune(), 0);
  later(25 * hourMs + hourMs);
  t.equal(await prune(), 25);
  t.same(
    (await list()).map(({ caller }) => caller?.id),
    ['recent'],
  );
});
