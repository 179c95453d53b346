import { once } from 'node:events';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { unseal } from '../src/crypto/seal.ts';
import { validationProblem } from '../src/domain/errors.ts';
import { bindingOf } from '../src/http/idempotency.ts';
import { pruneIdempotency } from '../src/http/idempotency-store.ts';
import { type Json, type Reply, startService, type TestService } from './support/app.ts';
import { createTestClock } from './support/clock.ts';
import { foreignToken } from './support/imports.ts';
import { t } from './support/tap.ts';

const withKey = (key: string) => ({ 'idempotency-key': key });
const hours = (count: number) => count * 3_600_000;

const isReplay = ({ headers }: Reply) => headers['idempotent-replayed'] === 'true';

async function countOf({ admin, operator }: TestService, action: string): Promise<number> {
  const own = await admin.get(`/v1/history?limit=200&action=${action}`);
  const installation = await operator.get(`/v1/history?limit=200&action=${action}`);
  return own.body.data.length + installation.body.data.length;
}

/** Two requests to a route that differ in path or body. */
const requestsTo: Record<string, (service: TestService) => Promise<Array<[path: string, body: Json]>>> = {
  '/v1/keys': async () => [
    ['/v1/keys', { name: 'One', metadata: { b: [1, { d: 1, c: 2 }], a: 'ü' } }],
    ['/v1/keys', { name: 'Two' }],
  ],
  '/v1/partners': async () => [
    ['/v1/partners', { email: 'one@p.example', permissions: ['read', 'write'] }],
    ['/v1/partners', { email: 'two@p.example', permissions: ['read', 'write'] }],
  ],
  '/v1/access-tokens': async () => [
    ['/v1/access-tokens', { role: 'verifier', name: 'One', scopes: ['read'] }],
    ['/v1/access-tokens', { role: 'verifier', name: 'Two', scopes: ['read'] }],
  ],
  '/v1/organizations': async () => [
    ['/v1/organizations', { name: 'One' }],
    ['/v1/organizations', { name: 'Two' }],
  ],
  '/v1/keys/:keyId/rotate': (service) => onTwoKeys(service, 'rotate', async () => undefined),
  '/v1/keys/:keyId/suspend': (service) => onTwoKeys(service, 'suspend', async () => undefined),
  '/v1/keys/:keyId/resume': (service) => onTwoKeys(service, 'resume', (path, admin) => admin.post(`${path}/suspend`)),
  '/v1/keys/:keyId/restore': (service) => onTwoKeys(service, 'restore', (path, admin) => admin.delete(path)),
  '/v1/claims': async (service) =>
    (await twoPartners(service)).map(({ keys }) => ['/v1/claims', { keyId: keys[0].id }]),
  '/v1/partners/:partnerId/suspend': (service) => onTwoPartners(service, 'suspend', async () => undefined),
  '/v1/partners/:partnerId/resume': (service) =>
    onTwoPartners(service, 'resume', (path, admin) => admin.post(`${path}/suspend`)),
  '/v1/partners/:partnerId/restore': (service) =>
    onTwoPartners(service, 'restore', (path, admin) => admin.delete(path)),
  '/v1/recovery-requests': async (service) => {
    const ids = await deletedKeys(service);
    return ids.map((keyId) => ['/v1/recovery-requests', { keyId, details: 'By mistake' }]);
  },
  '/v1/recovery-requests/:recoveryRequestId/approve': (service) => onTwoRequests(service, 'approve'),
  '/v1/recovery-requests/:recoveryRequestId/decline': (service) => onTwoRequests(service, 'decline'),
  '/v1/webhooks': async () => [
    ['/v1/webhooks', { url: 'http://127.0.0.1:9/one', events: ['key.created'] }],
    ['/v1/webhooks', { url: 'http://127.0.0.1:9/two', events: ['key.created'] }],
  ],
  '/v1/keys/import': twoImports,
  '/v1/keys/bulk': async (service) =>
    (await twoPartners(service)).map(({ keys }) => ['/v1/keys/bulk', { action: 'suspend', keyIds: [keys[0].id] }]),
  '/v1/webhooks/:webhookId/rotate-secret': (service) => onTwoWebhooks(service, 'rotate-secret'),
  '/v1/webhooks/:webhookId/enable': (service) => onTwoWebhooks(service, 'enable', 'disable'),
  '/v1/webhooks/:webhookId/disable': (service) => onTwoWebhooks(service, 'disable'),
  '/v1/webhooks/:webhookId/test': (service) => onTwoWebhooks(service, 'test'),
  '/v1/webhooks/:webhookId/deliveries/redeliver': async (service) => {
    const since = '2026-01-01T00:00:00Z';
    return (await onTwoWebhooks(service, 'deliveries/redeliver')).map(([path]) => [path, { since }]);
  },
  '/v1/webhooks/:webhookId/deliveries/:deliveryId/redeliver': async (service) => {
    const found: Array<[string, Json]> = [];
    for (const [path] of await onTwoWebhooks(service, 'deliveries')) {
      const { body } = await service.admin.get(path);
      found.push([`${path}/${body.data[0].id}/redeliver`, undefined]);
    }
    return found;
  },
};

async function twoImports(service: TestService): Promise<Array<[string, Json]>> {
  const partners = await twoPartners(service);
  return partners.map(({ id }) => ['/v1/keys/import', { entries: [{ partnerId: id, plaintext: foreignToken() }] }]);
}

type Prepare = (path: string, admin: TestService['admin']) => Promise<unknown>;

async function twoPartners({ admin }: TestService): Promise<Json[]> {
  const make = async () => {
    const email = `${Math.random()}@p.example`;
    return (await admin.post('/v1/partners', { email, permissions: ['read'] })).body;
  };
  return [await make(), await make()];
}

async function onTwoPartners(
  service: TestService,
  operation: string,
  prepare: Prepare,
): Promise<Array<[string, Json]>> {
  const paths = (await twoPartners(service)).map(({ id }) => `/v1/partners/${id}`);
  for (const path of paths) await prepare(path, service.admin);
  return paths.map((path) => [`${path}/${operation}`, undefined]);
}

async function onTwoKeys(service: TestService, operation: string, prepare: Prepare): Promise<Array<[string, Json]>> {
  const paths = (await twoPartners(service)).map(({ keys }) => `/v1/keys/${keys[0].id}`);
  for (const path of paths) await prepare(path, service.admin);
  return paths.map((path) => [`${path}/${operation}`, undefined]);
}

async function deletedKeys(service: TestService): Promise<string[]> {
  const ids = (await twoPartners(service)).map(({ keys }) => keys[0].id as string);
  for (const id of ids) await service.admin.delete(`/v1/keys/${id}`);
  return ids;
}

async function onTwoRequests(service: TestService, answer: string): Promise<Array<[string, Json]>> {
  const paths: string[] = [];
  for (const keyId of await deletedKeys(service)) {
    const { body } = await service.admin.post('/v1/recovery-requests', { keyId, details: 'By mistake' });
    paths.push(`/v1/recovery-requests/${body.id}`);
  }
  return paths.map((path) => [`${path}/${answer}`, { note: 'As agreed' }]);
}

async function onTwoWebhooks(
  { admin }: TestService,
  operation: string,
  before?: string,
): Promise<Array<[string, Json]>> {
  const paths: string[] = [];
  for (const name of ['one', 'two']) {
    const input = { url: `http://127.0.0.1:9/${name}`, events: ['webhook.created'] };
    const { body } = await admin.post('/v1/webhooks', input);
    paths.push(`/v1/webhooks/${body.id}`);
    if (before !== undefined) await admin.post(`/v1/webhooks/${body.id}/${before}`);
  }
  return paths.map((path) => [`${path}/${operation}`, undefined]);
}

/** How a plaintext looks in a reply. */
const plaintext = /lk_[kavoc]_[0-9a-z]|whsec_/;

/** All stored replies that can still be unsealed. */
async function openReplies({ client, keyring }: TestService): Promise<string[]> {
  const rows = await client.db.selectFrom('idempotency_keys').selectAll().execute();
  return rows.flatMap((row) => {
    const { sealed, sealed_keyring_id: keyringId } = row;
    return sealed === null || keyringId === null
      ? []
      : [unseal(keyring, { sealed, keyringId }, bindingOf(row)).reveal()];
  });
}

t.test('every POST that accepts an Idempotency-Key replays its reply', async (t) => {
  const service = await startService(t);
  const posts = service.app.routeList.filter(({ method, config }) => method === 'POST' && config?.idempotencyKey);
  const accepting = posts.filter(({ config }) => config?.idempotencyKey === 'taken');
  t.ok(accepting.length >= 21);
  t.same(
    posts.filter((route) => !accepting.includes(route)).map(({ url }) => url),
    ['/v1/keys/:keyId/reveal', '/v1/claims/redeem', '/v1/leaks'],
    'each other POST has a reason',
  );
  const bySelf = accepting.filter(
    ({ config }) => typeof config?.access === 'object' && config.access.role === 'api_key',
  );
  t.same(
    bySelf.map(({ url }) => url),
    ['/v1/self/rotate', '/v1/self/revoke'],
    'a key does each of these once: self-service.test.ts tests them',
  );
  for (const { url, config } of accepting.filter((route) => !bySelf.includes(route))) {
    await t.test(url, async (t) => {
      const access = config?.access as { role: 'admin' | 'operator' };
      const client = service[access.role];
      const requests = requestsTo[url];
      if (requests === undefined) throw new Error(`requestsTo has no requests to ${url}`);
      const [[path, body], [otherPath, otherBody]] = (await requests(service)) as [[string, Json], [string, Json]];
      const events = async () => (await client.get('/v1/history?limit=200')).body.data ?? [];
      const first = await client.post(path, body, withKey(url));
      t.ok([200, 201].includes(first.status), JSON.stringify(first.body));
      t.notOk(isReplay(first));
      const before = await events();
      const again = await client.post(path, body, withKey(url));
      t.ok(isReplay(again));
      t.equal(again.status, first.status);
      for (const name of ['location', 'etag', 'content-type']) t.equal(again.headers[name], first.headers[name], name);
      t.equal(JSON.stringify(again.body), JSON.stringify(first.body), 'the replay is identical');
      t.same(await events(), before, 'a replay leaves no event');

      const other = await client.post(otherPath, otherBody, withKey(url));
      if (otherPath === path) t.same([other.status, other.body.code], [422, 'idempotency_mismatch']);
      else t.same([other.status, isReplay(other)], [first.status, false], 'another path is another request');
      const fresh = await client.post(otherPath, otherBody, withKey(`${url} again`));
      t.ok(otherPath !== path || fresh.status === first.status, 'a mismatch has no effect');
    });
  }
  t.ok((await openReplies(service)).some((reply) => plaintext.test(reply)));
  await pruneIdempotency({ db: service.client.db, clock: createTestClock(15 * 60_000) });
  const remaining = await openReplies(service);
  t.ok(remaining.length > 10, 'the other replies are kept');
  t.notOk(remaining.some((reply) => plaintext.test(reply)));
});

t.test('bodies are compared by value, not by spelling', async (t) => {
  const { app, admin } = await startService(t);
  const post = async (payload: string) => {
    const headers = { authorization: `Bearer ${admin.token}`, 'content-type': 'application/json', ...withKey('k') };
    const response = await app.inject({ method: 'POST', url: '/v1/keys', payload, headers });
    return { status: response.statusCode, headers: response.headers, body: response.json() as Json };
  };
  const first = await post('{"name":"é","metadata":{"a":1,"b":[1,2],"c":{"x":0.1,"y":null}}}');
  const same = await post('{ "metadata": {"c":{"y":null,"x":1e-1},"b":[1.0,2],"a":1}, "name": "\\u00e9" }');
  t.ok(isReplay(same));
  t.same(same.body, first.body);
  for (const other of [
    '{"name":"é","metadata":{"a":1,"b":[2,1],"c":{"x":0.1,"y":null}}}',
    '{"name":"é","metadata":{"a":"1","b":[1,2],"c":{"x":0.1,"y":null}}}',
    '{"name":"é","metadata":{"a":1,"b":[1,2],"c":{"x":0.1}}}',
    '{"name":"é"}',
    '{}',
  ]) {
    t.equal((await post(other)).body.code, 'idempotency_mismatch', other);
  }
});

t.test('the same Idempotency-Key of another caller, organization or route is another request', async (t) => {
  const service = await startService(t);
  const { admin, operator, as, organizationId } = service;
  const input = { role: 'admin', name: 'Bob', email: 'bob@example.com', scopes: ['read', 'write'] };
  const otherAdmin = as((await admin.post('/v1/access-tokens', input)).body.token);
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const key = withKey('one for all');
  const inOrganization = { ...key, 'latchkey-organization': organizationId };
  const inOther = { ...key, 'latchkey-organization': other.id };
  const partner = (name: string) => ({ email: `${name}@p.example`, permissions: ['read'] });
  const replies = [
    await admin.post('/v1/keys', {}, key),
    await otherAdmin.post('/v1/keys', {}, key),
    await operator.post('/v1/keys', {}, inOther),
    await admin.post('/v1/partners', partner('admin'), key),
    await operator.post('/v1/partners', partner('operator'), inOrganization),
    await operator.post('/v1/partners', partner('operator'), inOther),
    await operator.post('/v1/organizations', { name: 'Third' }, key),
  ];
  t.same(
    replies.map((reply) => [reply.status, isReplay(reply)]),
    replies.map(() => [201, false]),
  );
  t.equal(new Set(replies.map(({ body }) => body.id)).size, replies.length);
  const named = await admin.post('/v1/keys', {}, { ...key, 'latchkey-organization': organizationId });
  t.ok(isReplay(named), 'naming the own organization makes no difference');
});

t.test('a caller without access gets no replay', async (t) => {
  const { admin, as } = await startService(t);
  const input = { role: 'admin', name: 'Bob', email: 'bob@example.com', scopes: ['read', 'write'] };
  const { body: token } = await admin.post('/v1/access-tokens', input);
  const otherAdmin = as(token.token);
  t.equal((await otherAdmin.post('/v1/keys', {}, withKey('k'))).status, 201);
  await admin.delete(`/v1/access-tokens/${token.id}`);
  t.equal((await otherAdmin.post('/v1/keys', {}, withKey('k'))).status, 401);
});

t.test('a reply is replayed for 24 hours; after that the request is done again', async (t) => {
  const service = await startService(t);
  const { admin, later } = service;
  const { body: first } = await admin.post('/v1/keys', {}, withKey('k'));
  later(hours(24) - 60_000);
  const replayed = await admin.post('/v1/keys', {}, withKey('k'));
  t.ok(isReplay(replayed));
  t.same(replayed.body.created, [first.id]);
  later(60_000);
  const later24 = await admin.post('/v1/keys', { name: 'Another' }, withKey('k'));
  t.same([later24.status, isReplay(later24)], [201, false], 'even if the old reply was not yet deleted');
  t.equal((await admin.post('/v1/keys', { name: 'Another' }, withKey('k'))).body.id, later24.body.id);
  t.equal(await countOf(service, 'key.created'), 2);
});

t.test('a replay computes no hash and checks no URL again', async (t) => {
  let checks = 0;
  const checkUrl = async () => {
    checks += 1;
    if (checks > 1) throw validationProblem('body.url', 'must lead to a public address');
  };
  const { admin, hasher } = await startService(t, { webhookClient: { checkUrl } });
  const webhook = { url: 'http://127.0.0.1:9/', events: ['key.created'] };
  const first = [
    await admin.post('/v1/webhooks', webhook, withKey('k')),
    await admin.post('/v1/keys', {}, withKey('k')),
  ];
  const { runs } = hasher;
  const again = [
    await admin.post('/v1/webhooks', webhook, withKey('k')),
    await admin.post('/v1/keys', {}, withKey('k')),
  ];
  t.same(
    again.map(({ status, body }) => ({ status, body })),
    first.map(({ body }) => ({ status: 201, body })),
  );
  t.same([hasher.runs - runs, checks], [0, 1]);
});

t.test('a rejection is not stored', async (t) => {
  const { admin } = await startService(t);
  const keys = [await admin.post('/v1/keys', {}), await admin.post('/v1/keys', {})];
  t.equal((await admin.post('/v1/keys', { name: 'Third' }, withKey('k'))).body.code, 'row_full');
  await admin.delete(`/v1/keys/${keys[0]?.body.id}`);
  const now = await admin.post('/v1/keys', { name: 'Third' }, withKey('k'));
  t.same([now.status, isReplay(now)], [201, false]);
  t.equal((await admin.post('/v1/keys', { name: '' }, withKey('other'))).status, 400);
  const corrected = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] }, withKey('other'));
  t.equal(corrected.status, 201, 'the Idempotency-Key stays free');
});

t.test('an Idempotency-Key is 1 to 255 printable ASCII characters, sent once', async (t) => {
  const service = await startService(t);
  const { admin, app } = service;
  const isRefused = (t: Test, { status, body }: Reply, what: string) => {
    t.same([status, body.code, body.errors?.[0].path], [400, 'validation_failed', 'headers.idempotency-key'], what);
  };
  for (const bad of ['', 'x'.repeat(256), 'ü', 'a\tb', 'a\u007fb', '\u00a0']) {
    isRefused(t, await admin.post('/v1/keys', {}, withKey(bad)), JSON.stringify(bad));
  }
  for (const good of ['x', 'x'.repeat(255), '"in quotes"', ' ~ ', 'a, b']) {
    const email = `p${Math.random()}@p.example`;
    const input = { email, permissions: ['read'] };
    t.equal((await admin.post('/v1/partners', input, withKey(good))).status, 201, good);
    t.ok(isReplay(await admin.post('/v1/partners', input, withKey(good))), good);
  }
  await app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = app.server.address() as AddressInfo;
  for (const keys of [
    ['a', 'b'],
    ['a', 'a'],
  ]) {
    const authorization = `Bearer ${admin.token}`;
    const headers = { authorization, 'content-type': 'application/json', 'Idempotency-Key': keys };
    const sent = httpRequest({ port, host: '127.0.0.1', path: '/v1/keys', method: 'POST', headers }).end('{}');
    const [response] = (await once(sent, 'response')) as [IncomingMessage];
    const [chunk] = await once(response, 'data');
    isRefused(t, { status: response.statusCode ?? 0, headers: {}, body: JSON.parse(String(chunk)) }, keys.join());
  }
  t.same((await admin.get('/v1/keys?partnerId=default')).body.data, [], 'nothing was created');
});

t.test('verifications and reveals ignore the Idempotency-Key', async (t) => {
  const service = await startService(t);
  const { admin, verifier, app } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  for (const header of [withKey('k'), withKey('k'), withKey('x'.repeat(256)), withKey('')]) {
    const verdict = await verifier.post('/v1/verify', { key: key.key, permission: 'read', cost: 1 }, header);
    t.same([verdict.status, verdict.body.valid, isReplay(verdict)], [200, true, false]);
    const reveal = await admin.post(`/v1/keys/${key.id}/reveal`, {}, header);
    t.same([reveal.status, reveal.body.key === key.key, isReplay(reveal)], [200, true, false]);
    const form = { ...header, 'content-type': 'application/x-www-form-urlencoded' };
    const headers = { ...form, authorization: `Bearer ${verifier.token}` };
    const answer = await app.inject({ method: 'POST', url: '/v1/introspect', headers, payload: `token=${key.key}` });
    t.match(answer.json(), { active: true });
    const gateway = {
      ...header,
      'x-latchkey-token': verifier.token,
      'x-api-key': key.key,
      'x-forwarded-method': 'POST',
    };
    t.equal((await app.inject({ method: 'POST', url: '/v1/authorize', headers: gateway })).statusCode, 200);
    t.equal((await admin.patch(`/v1/keys/${key.id}`, { name: 'x' }, header)).status, 200);
  }
  t.equal(await countOf(service, 'key.revealed'), 4, 'every reveal is its own event');
});
