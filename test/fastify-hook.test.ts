import type { FastifyInstance } from 'fastify';
import { latchkey } from '../clients/node/src/fastify.ts';
import { startBackend, startListening } from './support/hook.ts';
import { keepAliveClient } from './support/keep-alive-client.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

async function startScene(t: Parameters<typeof startListening>[0]) {
  const service = await startListening(t);
  const { admin } = service;
  const input = { email: 'p@p.example', permissions: ['read', 'write'], externalId: 'customer-4711' };
  const { body: partner } = await admin.post('/v1/partners', input);
  const { body: own } = await admin.post('/v1/keys', { name: 'Own', metadata: { team: 'billing' } });
  const [reading, writing] = partner.keys;
  return { service, partner, own, reading, writing, options: { url: service.url, token: service.verifier.token } };
}

const routes = (app: FastifyInstance) => {
  app.get('/open', { config: { permission: 'none' } }, async (request) => ({ key: request.apiKey }));
  app.get('/writes', { config: { permission: 'write' } }, async () => ({}));
  app.post('/reads', { config: { permission: 'read' } }, async () => ({}));
  app.delete('/hello', async () => ({}));
  app.options('/hello', async () => ({}));
  app.register(async (inner) => {
    inner.get('/inner', async () => ({}));
  });
};

t.test('each route accepts the permission of its config or of its method', async (t) => {
  const { own, reading, writing, options } = await startScene(t);
  const backend = await startBackend(t, options, routes);
  const table: Array<[method: string, path: string, reading: number, writing: number, own: number, none: number]> = [
    ['GET', '/hello', 200, 403, 200, 401],
    ['HEAD', '/hello', 200, 403, 200, 401],
    ['OPTIONS', '/hello', 200, 403, 200, 401],
    ['POST', '/hello', 403, 200, 200, 401],
    ['DELETE', '/hello', 403, 200, 200, 401],
    ['GET', '/writes', 403, 200, 200, 401],
    ['POST', '/reads', 200, 403, 200, 401],
    ['GET', '/inner', 200, 403, 200, 401],
    ['GET', '/open', 200, 200, 200, 200],
    ['GET', '/nowhere', 404, 403, 404, 401],
    ['POST', '/nowhere', 403, 404, 404, 401],
  ];
  for (const [method, path, ...expected] of table) {
    const keys = [reading.key, writing.key, own.key, undefined];
    const statuses = [];
    // The first call goes to Latchkey, the second is answered from memory.
    for (const key of keys)
      statuses.push(await backend.status(key, path, method), await backend.status(key, path, method));
    t.same(
      statuses,
      expected.flatMap((status) => [status, status]),
      `${method} ${path}`,
    );
  }
});

t.test('a handler gets the key and owner of the request', async (t) => {
  const { service, partner, own, reading, options } = await startScene(t);
  const backend = await startBackend(t, options, routes);
  const requestKey = async (key: string, path = '/hello') =>
    ((await (await fetch(backend.url + path, { headers: { 'x-api-key': key } })).json()) as { key: unknown }).key;
  const expected = {
    id: reading.id,
    organizationId: service.organizationId,
    partnerId: partner.id,
    partnerExternalId: 'customer-4711',
    partnerEmail: 'p@p.example',
    permission: 'read',
    scopes: [],
    name: null,
    metadata: {},
    expiresAt: null,
  };
  t.strictSame(await requestKey(reading.key), expected);
  const plain = await fetch(`${backend.url}/hello`, { headers: { 'x-api-key': reading.key } });
  t.equal(plain.headers.get('ratelimit'), null, 'limits are sent only if that is configured');
  t.strictSame(await requestKey(reading.key), expected, 'also from memory');
  t.match(await requestKey(own.key), {
    partnerId: null,
    partnerExternalId: null,
    permission: 'read_write',
    name: 'Own',
    metadata: { team: 'billing' },
  });
  t.equal(await requestKey(own.key, '/open'), null);
});

t.test('requests with different keys on one connection get their own keys', async (t) => {
  const { service, own, reading, options } = await startScene(t);
  const backend = await startBackend(t, options, routes);
  await eventually(async () => (await backend.status(reading.key)) === 200 && (await backend.status(own.key)) === 200);
  const connection = keepAliveClient(backend.url);
  t.teardown(() => connection.close());
  const requestKey = async (token: string) => {
    const { status, body } = await connection.send('/hello', { token });
    return status === 200 ? JSON.parse(body).key.id : status;
  };
  // Equal length, and only the last character differs.
  const other = reading.key.slice(0, -1) + (reading.key.endsWith('0') ? '1' : '0');
  const order = [reading, reading, own, own, reading, own, reading];
  for (const { id, key } of order) {
    t.equal(await requestKey(key), id);
    t.equal(await requestKey(other), 401);
  }
  t.equal(await requestKey(own.key), own.id);
  await service.admin.delete(`/v1/keys/${own.id}`);
  await eventually(async () => (await requestKey(own.key)) === 401);
  t.equal(await requestKey(reading.key), reading.id);
  await backend.app.close();
  await service.verification.usage.flush();
  const uses = async ({ id }: { id: string }) =>
    (await service.admin.get(`/v1/keys/${id}/usage`)).body.total.allowed as number;
  t.ok((await uses(reading)) >= 6, 'each use is reported');
});

t.test('a changed key is verified again, although the connection has just used it', async (t) => {
  const { service, own, options } = await startScene(t);
  // Unreported uses, and the text of the key, wait during the whole test.
  const backend = await startBackend(t, { ...options, reportEveryMs: 60_000 }, routes);
  const connection = keepAliveClient(backend.url);
  t.teardown(() => connection.close());
  const status = async () => (await connection.send('/hello', { token: own.key })).status;
  for (let round = 0; round < 3; round++) t.equal(await status(), 200);
  await service.admin.post(`/v1/keys/${own.id}/suspend`, {});
  await eventually(async () => (await status()) === 401, 2_000);
  await service.admin.post(`/v1/keys/${own.id}/resume`, {});
  await eventually(async () => (await status()) === 200, 2_000);
});

t.test('rejections are problems with the headers that clients need', async (t) => {
  const { service, own, reading, options } = await startScene(t);
  const { body: limited } = await service.admin.post('/v1/keys', { rateLimit: { requests: 2, windowSeconds: 60 } });
  const backend = await startBackend(t, { ...options, rateLimitFields: true }, routes);
  const send = async (headers: Record<string, string>, path = '/hello', method = 'GET') => {
    const response = await fetch(backend.url + path, { method, headers });
    const text = await response.text();
    return {
      status: response.status,
      headers: Object.fromEntries(response.headers),
      body: text === '' ? {} : JSON.parse(text),
    };
  };
  const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
  const good = await send(bearer(own.key));
  t.match(good.headers, { ratelimit: /^"owner";r=\d+;t=\d+$/, 'ratelimit-policy': '"owner";q=1000;w=60' });

  const none = await send({});
  t.match(none, {
    status: 401,
    headers: {
      'www-authenticate': 'Bearer realm="api"',
      'content-type': /^application\/problem\+json/,
      'cache-control': 'no-store',
    },
  });
  t.match(none.body, { type: 'about:blank', title: 'Unauthorized', status: 401, code: 'unauthorized', requestId: /./ });
  const invalid = await send(bearer('lk_k_nonsense'));
  const { requestId: _, ...rejection } = invalid.body;
  t.match(invalid, { status: 401, headers: { 'www-authenticate': /error="invalid_token"/ } });
  const { body: deletedKey } = await service.admin.post('/v1/keys', {
    partnerId: reading.partnerId,
    permission: 'read',
  });
  await service.admin.delete(`/v1/keys/${deletedKey.id}`);
  const { requestId: __, ...rejectionOfDeleted } = (await send(bearer(deletedKey.key))).body;
  t.same(rejectionOfDeleted, rejection, 'replies do not reveal which keys exist');
  t.match(await send(bearer(reading.key), '/hello', 'POST'), {
    status: 403,
    headers: { 'www-authenticate': /error="insufficient_scope"/ },
    body: { code: 'forbidden' },
  });
  await send(bearer(limited.key));
  await send(bearer(limited.key));
  t.match(await send(bearer(limited.key)), {
    status: 429,
    headers: { 'retry-after': /^\d+$/, ratelimit: /^"key";r=0;t=\d+$/, 'ratelimit-policy': '"key";q=2;w=60' },
    body: { code: 'rate_limited' },
  });
  t.match(await send({ authorization: 'Basic abc' }), { status: 401, body: { code: 'unauthorized' } });
  t.match(await send({ ...bearer(own.key), 'x-api-key': reading.key }), { status: 400, body: { code: 'bad_request' } });
  t.match(await send({ ...bearer(own.key), 'x-api-key': own.key }), { status: 200 });
  for (const query of [`?key=${own.key}`, `?a=b&c=${own.key.replaceAll('_', '%5F')}`]) {
    t.match(
      await send(bearer(own.key), `/hello${query}`),
      { status: 400, body: { code: 'bad_request' } },
      query.slice(0, 5),
    );
  }
  t.match(
    await send(bearer(own.key), '/hello?token=next-page'),
    { status: 200 },
    'other authentication parameters belong to the application',
  );
});

t.test("an application can set the key's header, the cost and the denial", async (t) => {
  const { own, reading, options } = await startScene(t);
  const backend = await startBackend(
    t,
    {
      ...options,
      rateLimitFields: true,
      header: 'X-Acme-Key',
      cost: (request) => (request.url === '/hello' ? 10 : 1),
      onDenied: (denial, request, reply) => {
        if (request.url === '/writes') return undefined;
        reply.header('x-why', denial.verdict?.code ?? 'no key');
        return { error: denial.code };
      },
    },
    routes,
  );
  const send = (path: string, headers: Record<string, string>) => fetch(backend.url + path, { headers });
  const first = await send('/hello', { 'x-acme-key': own.key });
  t.match(first.headers.get('ratelimit'), /r=990;/);
  const denied = await send('/hello', { authorization: `Bearer ${own.key}` });
  t.equal(denied.status, 401, 'the key is read only from the configured header');
  t.equal(denied.headers.get('x-why'), 'no key');
  t.same(await denied.json(), { error: 'unauthorized' });
  const forbidden = await send('/writes', { 'x-acme-key': reading.key });
  t.equal(forbidden.status, 403);
  t.match(await forbidden.json(), { code: 'forbidden' }, 'the default reply, if onDenied sends none');
});

for (const how of ['at once', 'later'] as const) {
  t.test(`an onDenied that fails ${how} neither allows the request nor leaves it without a reply`, async (t) => {
    const { service, options } = await startScene(t);
    const fails = () => {
      const mistake = new Error('the application’s own mistake');
      if (how === 'at once') throw mistake;
      return Promise.reject(mistake);
    };
    const backend = await startBackend(t, { ...options, onDenied: fails });
    t.equal(await backend.status('nonsense'), 401);
    t.equal(await backend.status(undefined), 401);
    const { body: key } = await service.admin.post('/v1/keys', {});
    await service.admin.delete(`/v1/keys/${key.id}`);
    t.equal(await backend.status(key.key), 401, 'after a call to Latchkey');
  });
}

t.test('the client address is the one that the application trusts', async (t) => {
  const { service, options } = await startScene(t);
  const { body: bound } = await service.admin.post('/v1/keys', { allowedIps: ['203.0.113.0/24'] });
  const statusesWith = async (trustProxy: boolean) => {
    const backend = await startBackend(t, options, routes, { trustProxy });
    const headers = { 'x-api-key': bound.key, 'x-forwarded-for': '203.0.113.9' };
    const statuses = [];
    for (let round = 0; round < 3; round++) statuses.push((await fetch(`${backend.url}/hello`, { headers })).status);
    const fromOtherAddress = await fetch(`${backend.url}/hello`, {
      headers: { ...headers, 'x-forwarded-for': '198.51.100.1' },
    });
    return [...statuses, fromOtherAddress.status];
  };
  t.same(await statusesWith(false), [403, 403, 403, 403]);
  t.same(await statusesWith(true), [200, 200, 200, 403], 'a verdict for one address is not used for another');
});

t.test("only routes in the plugin's scope are protected", async (t) => {
  const { own, options } = await startScene(t);
  const fastify = (await import('fastify')).default;
  const app = fastify();
  t.teardown(() => app.close());
  app.get('/outside', async () => ({}));
  await app.register(async (scope) => {
    await scope.register(latchkey, options);
    scope.get('/inside', async () => ({}));
  });
  const status = async (url: string, headers = {}) => (await app.inject({ url, headers })).statusCode;
  t.equal(await status('/outside'), 200);
  t.equal(await status('/inside'), 401);
  t.equal(await status('/inside', { 'x-api-key': own.key }), 200);
  t.equal(await status('/nowhere'), 404);
});

t.test('a route with an unknown permission prevents the start', async (t) => {
  const { options } = await startScene(t);
  const fastify = (await import('fastify')).default;
  const app = fastify();
  t.teardown(() => app.close());
  await app.register(latchkey, options);
  const config = { permission: 'reed' as 'read' };
  t.throws(() => app.get('/typo', { config }, async () => ({})), /config\.permission/);
});

t.test('the plugin must be registered before the routes, which can follow in any order', async (t) => {
  const { options } = await startScene(t);
  const fastify = (await import('fastify')).default;
  const app = fastify();
  t.teardown(() => app.close());
  app.register(latchkey, options);
  app.register(async (scope) => {
    scope.get('/late', async () => ({}));
  });
  t.equal((await app.inject('/late')).statusCode, 401);
});
