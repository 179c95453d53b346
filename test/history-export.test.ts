import { once } from 'node:events';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { sql } from 'kysely';
import { connect } from '../src/database/client.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import type { StoredEvent } from '../src/history/chain.ts';
import { readEvents, readHead } from '../src/history/store.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { createDatabase, dbQuery, roleOf } from './support/database.ts';
import { dbAddEvents, dbTamper, findByLatchkey } from './support/histories.ts';
import { eventually } from './support/process.ts';
import { dbSessions } from './support/sessions.ts';
import { t } from './support/tap.ts';

async function exported({ app, admin }: TestService, token = admin.token, headers: Record<string, string> = {}) {
  const response = await app.inject({
    url: '/v1/history/export',
    headers: { authorization: `Bearer ${token}`, ...headers },
  });
  return { status: response.statusCode, headers: response.headers, text: response.body };
}

/** Opens an export over a real connection without reading its body. */
async function beginExport({ app, admin }: TestService): Promise<IncomingMessage> {
  const { port } = app.server.address() as AddressInfo;
  const headers = { authorization: `Bearer ${admin.token}` };
  const clientRequest = httpRequest({ port, host: '127.0.0.1', path: '/v1/history/export', headers, agent: false });
  clientRequest.end();
  const [response] = (await once(clientRequest, 'response')) as [IncomingMessage];
  return response;
}

const busyConnections = async ({ urls }: TestService) =>
  (await dbSessions(urls.superuser, "usename = $1 and state <> 'idle'", [roleOf(urls.app)])).length;

t.test('the export has the same events as the list, oldest first, one per line', async (t) => {
  const service = await startService(t);
  const { admin, operator, organizationId } = service;
  const { body: key } = await admin.post('/v1/keys', { name: 'Of "quotes"' });
  await admin.patch(`/v1/keys/${key.id}`, {
    metadata: { '\u2028\u2029\r\n': 'lines \u2028', n: 1e21, z: [1.5e-7, '😀'] },
  });
  const { status, headers, text } = await exported(service);
  t.equal(status, 200);
  t.equal(headers['content-type'], 'application/x-ndjson; charset=utf-8');
  t.equal(headers['cache-control'], 'no-store');
  t.ok(text.endsWith('\n'));
  const lines = text.trimEnd().split('\n');
  const { body } = await admin.get('/v1/history?limit=200');
  t.same(
    lines.map((line) => JSON.parse(line)),
    body.data.toReversed(),
  );
  for (const line of lines) {
    t.match(line, /,"previousHash":"[0-9a-f]{64}","hash":"[0-9a-f]{64}"\}$/, 'the hashes are the last members');
  }
  t.same(await findByLatchkey(Buffer.from(text)), { firstBad: undefined, why: '' });

  const installation = (await exported(service, operator.token)).text.trimEnd().split('\n');
  t.same(
    installation.map((line) => JSON.parse(line).organizationId),
    [null],
  );
  t.equal((await exported(service, operator.token, { 'latchkey-organization': organizationId })).text, text);
  const head = await service.app.inject({
    method: 'HEAD',
    url: '/v1/history/export',
    headers: { authorization: `Bearer ${admin.token}` },
  });
  t.equal(head.statusCode, 405, 'HEAD would read all events for nothing');
});

t.test('an export continues after the event that the reader has, and says where it ends', async (t) => {
  const service = await startService(t);
  const { admin, app } = service;
  for (let round = 0; round < 5; round++) await admin.patch('/v1/organization', { name: `Name ${round}` });
  const whole = (await exported(service)).text;
  const lines = whole.split(/(?<=\n)/);
  const after = async (query: string) => {
    const headers = { authorization: `Bearer ${admin.token}` };
    const response = await app.inject({ url: `/v1/history/export?after=${query}`, headers });
    const { statusCode: status, body: text } = response;
    return { status, text, last: response.headers['x-latchkey-last-sequence'] };
  };
  const last = lines.length;
  for (const start of [0, 1, 4, last - 1, last]) {
    t.same(await after(String(start)), { status: 200, text: lines.slice(start).join(''), last: String(last) });
  }
  t.same(await after('9007199254740991'), { status: 200, text: '', last: String(last) }, 'further than history');
  for (const wrong of ['-1', '1.5', 'x', '', '9007199254740992', '1&after=2']) {
    t.equal((await after(wrong)).status, 400, wrong);
  }
});

t.test('the export ends with the last event at its beginning, even if new events are added', async (t) => {
  const service = await startService(t);
  const { admin, app, urls, organizationId } = service;
  await dbAddEvents(urls.superuser, organizationId, 3_000);
  await app.listen({ port: 0, host: '127.0.0.1' });
  const last = (await admin.get('/v1/history?limit=1')).body.data[0].sequence;
  const response = await beginExport(service);
  for (let requests = 1; requests <= 5; requests++) await admin.put('/v1/rate-limit', { requests, windowSeconds: 60 });
  const chunks = await response.toArray();
  const text = Buffer.concat(chunks);
  const lines = text.toString().trimEnd().split('\n');
  t.equal(lines.length, last);
  t.equal((JSON.parse(lines.at(-1) ?? '') as Json).sequence, last);
  t.equal((await findByLatchkey(text)).firstBad, undefined);
});

t.test('each event is read once, even if Postgres has no statistics about the table', async (t) => {
  const { urls, organizationId } = await startService(t);
  await dbQuery(urls.superuser, 'alter table history set (autovacuum_enabled = off)');
  await dbAddEvents(urls.superuser, organizationId, 10_000);
  // A session reports its own statistics.
  const client = connect({ url: urls.app, poolSize: 1 });
  t.teardown(() => client.close());
  const { sequence } = await readHead(client.db, organizationId);
  const batches: StoredEvent[][] = [];
  let events = 0;
  for await (const rows of readEvents(client.db, organizationId, sequence)) {
    events += rows.length;
    batches.push(rows);
  }
  t.equal(events, sequence);
  t.ok(
    batches.every(({ length }) => length === 0),
    'a used batch keeps no memory',
  );
  await sql`select pg_stat_force_next_flush()`.execute(client.db);
  const [{ analyzed, read } = {}] = await dbQuery(
    urls.superuser,
    `select i.idx_tup_read::int as read, t.last_autoanalyze as analyzed
     from pg_stat_user_indexes i join pg_stat_user_tables t using (relid) where i.indexrelname = 'history_pk'`,
  );
  t.equal(analyzed, null);
  t.ok(Number(read) >= events && Number(read) < 2 * events, `${read} entries of the index for ${events} events`);
});

t.test('events after a gap are exported, however wide the gap is', async (t) => {
  const service = await startService(t);
  const { urls, organizationId } = service;
  await dbAddEvents(urls.superuser, organizationId, 2_000);
  await dbTamper(
    urls.superuser,
    `delete from history where chain = '${organizationId}' and sequence between 300 and 1_400`,
  );
  const { text } = await exported(service);
  const sequences = text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line).sequence as number);
  const { sequence: last } = (await service.admin.get('/v1/history?limit=1')).body.data[0];
  t.same(sequences.slice(298, 300), [299, 1_401]);
  t.equal(sequences.at(-1), last);
  t.equal((await findByLatchkey(Buffer.from(text))).firstBad, 300);
  t.match((await service.admin.get('/v1/history/verify')).body, { valid: false, firstBadSequence: 300 });
});

t.test('a slow reader holds no connection and does not delay others', async (t) => {
  const urls = await createDatabase(t);
  const client = connect({ url: urls.app, poolSize: 2, timeoutMs: 2_000 });
  t.teardown(() => client.close());
  const service = await startService(t, { urls, transactor: { db: client.db, clock: createDatabaseClock() } });
  const { admin, app, organizationId } = service;
  await dbAddEvents(urls.superuser, organizationId, 40_000);
  await app.listen({ port: 0, host: '127.0.0.1' });
  // More readers than connections, and more data than the sockets can buffer.
  const readers = await Promise.all(Array.from({ length: 4 }, () => beginExport(service)));
  await eventually(async () => client.pool.idleCount === client.pool.totalCount && client.pool.waitingCount === 0);
  t.equal(await busyConnections(service), 0);
  t.equal((await admin.get('/v1/keys')).status, 200);
  const [first, ...others] = readers;
  for (const other of others) other.destroy();
  const text = Buffer.concat((await first?.toArray()) ?? []);
  t.equal(text.toString().trimEnd().split('\n').length, (await admin.get('/v1/history?limit=1')).body.data[0].sequence);
});

t.test('an export whose reader disconnects ends, and reads nothing more', async (t) => {
  const service = await startService(t);
  const { app, admin, urls, organizationId, client } = service;
  await dbAddEvents(urls.superuser, organizationId, 40_000);
  await app.listen({ port: 0, host: '127.0.0.1' });
  let acquired = 0;
  client.pool.on('acquire', () => {
    acquired += 1;
  });
  const response = await beginExport(service);
  await once(response, 'readable');
  response.destroy();
  await eventually(async () => (await connectionsOf(app)) === 0);
  // Wait as long as the export would need to continue.
  for (let index = 0; index < 20; index++) await admin.get('/v1/keys');
  t.ok(acquired < 40_000 / 250, `${acquired} queries, fewer than the 160 of a whole export`);
  t.notMatch(service.logLines.join(''), '"level":50');
});

const connectionsOf = (app: TestService['app']) =>
  new Promise<number>((resolve, reject) =>
    app.server.getConnections((error, count) => (error === null ? resolve(count) : reject(error))),
  );

t.test('shutdown does not wait for a slow reader, which can see that its export is incomplete', async (t) => {
  const service = await startService(t);
  const { app, urls, organizationId } = service;
  await dbAddEvents(urls.superuser, organizationId, 40_000);
  await app.listen({ port: 0, host: '127.0.0.1' });
  const response = await beginExport(service);
  const startedAt = performance.now();
  await app.close();
  t.ok(performance.now() - startedAt < 5_000);
  await t.rejects(response.toArray(), { code: 'ECONNRESET' });
});

t.test('without a database the export is rejected with a problem', async (t) => {
  const service = await startService(t);
  const { urls } = service;
  const role = roleOf(urls.app);
  await dbQuery(urls.owner, `revoke select on history from ${role}`);
  const { status, text } = await exported(service);
  t.equal(status, 503);
  t.equal(JSON.parse(text).code, 'unavailable');
});
