import { once } from 'node:events';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { Test } from 'tap';
import { createConcurrencyLimit } from '../src/http/concurrency-limit.ts';
import { type Client, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbAddEvents } from './support/histories.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// Expensive requests are limited by organization or address, so that one cannot exclude the others.

async function startListening(t: Test) {
  const service = await startService(t);
  const sockets = new Set<Socket>();
  service.app.server.on('connection', (socket: Socket) => sockets.add(socket));
  await service.app.listen({ port: 0, host: '127.0.0.1' });
  return { ...service, sockets };
}

/** Begins a request on its own connection, and reads no body until the test asks for it. */
async function begin(t: Test, { app }: TestService, path: string, headers = {}): Promise<IncomingMessage> {
  const { port } = app.server.address() as AddressInfo;
  const clientRequest = httpRequest({ port, host: '127.0.0.1', path, headers, agent: false });
  t.teardown(() => clientRequest.destroy());
  clientRequest.end();
  const [response] = (await once(clientRequest, 'response')) as [IncomingMessage];
  response.on('error', () => undefined);
  return response;
}

const as = ({ token }: Client) => ({ authorization: `Bearer ${token}` });

async function otherOrganization({ operator, as }: TestService) {
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const input = { role: 'admin', scopes: ['read', 'write'], name: 'Olga', email: 'olga@example.com' };
  const named = { 'latchkey-organization': other.id };
  return {
    named,
    id: other.id as string,
    admin: as((await operator.post('/v1/access-tokens', input, named)).body.token),
  };
}

const statusesOf = (responses: IncomingMessage[]) => responses.map(({ statusCode }) => statusCode ?? 0).sort();

t.test('an organization at its limit of exports is rejected, and another one is served', async (t) => {
  const service = await startListening(t);
  const { admin, operator, urls, organizationId } = service;
  const other = await otherOrganization(service);
  await dbAddEvents(urls.superuser, organizationId, 20_000);
  const path = '/v1/history/export';
  const open = await Promise.all(Array.from({ length: 4 }, () => begin(t, service, path, as(admin))));
  t.same(statusesOf(open), [200, 200, 200, 200]);
  const more = await begin(t, service, path, as(admin));
  t.match(more, { statusCode: 429, headers: { 'retry-after': '5', 'content-type': /problem/ } });
  const byOperator = { ...as(operator), 'latchkey-organization': organizationId };
  t.equal((await begin(t, service, path, byOperator)).statusCode, 429, 'an operator shares the limit');
  t.equal((await begin(t, service, path, as(other.admin))).statusCode, 200);
  t.equal((await begin(t, service, path, as(operator))).statusCode, 200, 'the installation has a limit of its own');
  const refused = await eventually(async () => {
    const { data } = (await admin.get('/v1/history?kind=refused')).body;
    return data.length > 0 && data;
  });
  t.match(refused, [{ operation: 'exportHistory', code: 'rate_limited' }]);
  open[0]?.destroy();
  await open[1]?.toArray();
  const again = async () => (await begin(t, service, path, as(admin))).statusCode === 200;
  await eventually(again);
  await eventually(again);
});

t.test('memory for a client that does not read is bounded, even with large events', async (t) => {
  const service = await startListening(t);
  const { admin, client, sockets, urls, organizationId } = service;
  // As large as an update that records the whole metadata before and after.
  await dbAddEvents(urls.superuser, organizationId, 600, () => ({ reason: 'x'.repeat(32_000) }));
  let acquired = 0;
  client.pool.on('acquire', () => {
    acquired += 1;
  });
  const response = await begin(t, service, '/v1/history/export', as(admin));
  let before = -1;
  const unread = () => Math.max(...[...sockets].map(({ writableLength }) => writableLength));
  // Wait until the kernel's buffers are full.
  await eventually(async () => {
    const isStill = acquired === before;
    before = acquired;
    return isStill && unread() > 0;
  });
  t.ok(unread() < 400_000, `${unread()} bytes wait for the reader`);
  const text = Buffer.concat(await response.toArray()).toString();
  t.equal(text.trimEnd().split('\n').length, (await admin.get('/v1/history?limit=1')).body.data[0].sequence);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test(
  'unread large replies are limited by organization; small replies and other organizations continue',
  async (t) => {
    const service = await startListening(t);
    const { admin, urls } = service;
    const other = await otherOrganization(service);
    const { body: partner } = await admin.post('/v1/partners', {
      email: 'p@p.example',
      permissions: ['read', 'write'],
    });
    await dbInsertPartners(urls.superuser, partner.id);
    const path = '/v1/rows?limit=200';
    const replies = [];
    // One after the other. A page has 6.6 MB, more than the kernel buffers; ten pages are less than 64 MiB.
    for (let round = 0; round < 12; round++) replies.push(await begin(t, service, path, as(admin)));
    const statuses = replies.map(({ statusCode }) => statusCode);
    t.same(statuses, [...Array.from({ length: 10 }, () => 200), 429, 429], 'ten of them fit');
    t.match(replies.at(-1), { statusCode: 429, headers: { 'retry-after': '5', 'content-type': /problem/ } });
    t.equal((await admin.get('/v1/keys')).status, 200);
    t.equal((await begin(t, service, path, as(other.admin))).statusCode, 200);
    t.equal((await replies[0]?.toArray())?.length === 0, false);
    await eventually(async () => (await begin(t, service, path, as(admin))).statusCode === 200);
  },
);

t.test('concurrent verifications of one history are limited, and those of other organizations continue', async (t) => {
  const service = await startListening(t);
  const { admin, urls, organizationId } = service;
  const other = await otherOrganization(service);
  await dbAddEvents(urls.superuser, organizationId, 20_000);
  const path = '/v1/history/verify';
  const flood = Array.from({ length: 20 }, () => begin(t, service, path, as(admin)));
  t.equal((await other.admin.get(path)).body.valid, true);
  const replies = await Promise.all(flood);
  t.same(statusesOf(replies), [200, 200, ...Array.from({ length: 18 }, () => 429)]);
  t.equal(replies.find(({ statusCode }) => statusCode === 429)?.headers['retry-after'], '5');
  t.equal((await admin.get(path)).body.valid, true, 'later requests are served');
});

t.test('a verification ends when its client is gone', async (t) => {
  const service = await startListening(t);
  const { admin, app, client, urls, organizationId, logLines } = service;
  await dbAddEvents(urls.superuser, organizationId, 40_000);
  const { port } = app.server.address() as AddressInfo;
  let acquired = 0;
  client.pool.on('acquire', () => {
    acquired += 1;
  });
  for (let round = 0; round < 2; round++) {
    const clientRequest = httpRequest({ port, path: '/v1/history/verify', headers: as(admin), agent: false });
    clientRequest.on('error', () => undefined);
    clientRequest.end();
    const before = acquired;
    await eventually(async () => acquired > before + 10);
    clientRequest.destroy();
  }
  await eventually(async () => (await admin.get('/v1/history/verify')).status === 200);
  t.ok(acquired < 2.5 * (40_000 / 250), `${acquired} queries: only one verification ran to its end`);
  t.notMatch(logLines.join(''), '"level":50');
});

t.test('concurrent metrics requests share one collection, and one address gets only a part of them', async (t) => {
  const { app, client } = await startService(t);
  let acquired = 0;
  client.pool.on('acquire', () => {
    acquired += 1;
  });
  await app.inject('/metrics');
  const forOne = acquired;
  acquired = 0;
  const scrape = (remoteAddress: string) => app.inject({ url: '/metrics', remoteAddress });
  const flood = Array.from({ length: 40 }, () => scrape('192.0.2.1'));
  const fromOtherAddress = await scrape('192.0.2.2');
  const replies = await Promise.all(flood);
  t.same(replies.map(({ statusCode }) => statusCode).sort(), [
    ...Array.from({ length: 8 }, () => 200),
    ...Array.from({ length: 32 }, () => 429),
  ]);
  t.equal(fromOtherAddress.statusCode, 200);
  t.ok(acquired <= 2 * forOne, `${acquired} connections for 9 replies, ${forOne} for one`);
  t.equal((await scrape('192.0.2.1')).statusCode, 200, 'later requests are served');
});

t.test('however much earlier groups have taken, one group leaves room for the next', async (t) => {
  for (const totalLimit of [0, 1, 2, 7, 64]) {
    const atOnce = createConcurrencyLimit({ resources: 'things', totalLimit, retryAfterSeconds: 1 });
    const releases: Array<() => void> = [];
    let groups = 0;
    for (; releases.length < totalLimit; groups++) {
      const before = releases.length;
      const takeAll = () => {
        for (;;) releases.push(atOnce.acquire(`group ${groups}`));
      };
      t.throws(takeAll, { code: 'rate_limited' });
      t.equal(releases.length - before, Math.ceil((totalLimit - before) / 2));
    }
    t.throws(() => atOnce.acquire('late'), { code: 'overloaded', headers: { 'retry-after': '1' } });
    for (const leave of [...releases, ...releases]) leave();
    if (totalLimit > 0) t.doesNotThrow(() => atOnce.acquire('late'));
  }
});

/** 200 partners with four keys each, all with the maximum metadata. */
async function dbInsertPartners(url: string, partnerId: string): Promise<void> {
  await dbQuery(
    url,
    `insert into partners select (jsonb_populate_record(one, jsonb_build_object(
       'id', 'partner_0' || to_char(n, 'FM0000000000000000000000000'), 'email', n || '@p.example'))).*
     from partners as one, generate_series(1, 199) as n where one.id = $1`,
    [partnerId],
  );
  await dbQuery(
    url,
    `insert into api_keys select (jsonb_populate_record(one, jsonb_build_object(
       'id', 'key_0' || to_char(n * 4 + place + case one.permission when 'read' then 0 else 2 end, 'FM0000000000000000000000000'),
       'slot', place, 'partner_id', 'partner_0' || to_char(n, 'FM0000000000000000000000000')))).*
     from api_keys as one, generate_series(1, 199) as n, generate_series(1, 2) as place where one.partner_id = $1`,
    [partnerId],
  );
  await dbQuery(url, "update api_keys set metadata = json_build_object('text', repeat('x', 16000))");
}

/** Begins a request with a body of which only the first byte arrives. @returns its status if it is rejected at once */
function beginBody(t: Test, { app }: TestService, path: string, headers: Record<string, string>) {
  const { port } = app.server.address() as AddressInfo;
  const clientRequest = httpRequest({
    ...{ port, host: '127.0.0.1', path, agent: false, method: 'POST' },
    headers: { 'content-type': 'application/json', expect: '100-continue', ...headers },
  });
  t.teardown(() => clientRequest.destroy());
  clientRequest.on('error', () => undefined);
  clientRequest.write('{');
  const status = once(clientRequest, 'response').then(
    ([response]) => (response as IncomingMessage).statusCode,
    () => undefined,
  );
  return { clientRequest, status };
}

for (const { path, length, most, body } of [
  {
    path: '/v1/keys/import',
    length: 1_000_000,
    most: 32,
    body: { dryRun: true, entries: [{ plaintext: 'x'.repeat(20) }] },
  },
  { path: '/v1/verify/batch', length: 524_288, most: 64, body: { entries: [{ key: 'x', permission: 'read' }] } },
]) {
  t.test(`bodies that arrive slowly at ${path} fill no memory, and other organizations are served`, async (t) => {
    const service = await startListening(t);
    const { admin, verifier, operator } = service;
    const isImport = path.endsWith('import');
    const other = await otherOrganization(service);
    const token = { role: 'verifier', scopes: ['read'], name: 'Vera' };
    const { body: otherVerifier } = await operator.post('/v1/access-tokens', token, other.named);
    const [caller, another] = isImport ? [admin, other.admin] : [verifier, service.as(otherVerifier.token)];
    const headers = { ...as(caller), 'content-length': String(length) };
    const begun = Array.from({ length: most + 8 }, () => beginBody(t, service, path, headers));
    const rejected: unknown[] = [];
    for (const { status } of begun) void status.then((code) => rejected.push(code));
    await eventually(async () => rejected.length === 8);
    t.same(new Set(rejected), new Set([429]));
    t.equal((await caller.post(path, body)).status, 429);
    t.equal((await another.post(path, body)).status, 200);
    for (const { clientRequest } of begun) clientRequest.destroy();
    await eventually(async () => (await caller.post(path, body)).status === 200);
  });
}
