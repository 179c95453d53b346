import type { FastifyInstance } from 'fastify';
import { latchkey } from '../src/fastify/plugin.ts';
import { startBackend, startListening } from './support/hook.ts';
import { keepAliveClient } from './support/keep-alive-client.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// latchkey/fastify: a backend in three lines, closed but for what says otherwise.

async function scene(t: Parameters<typeof startListening>[0]) {
  const service = await startListening(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
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

t.test('each route lets in what its permission says, by itself or by its method', async (t) => {
  const { own, reading, writing, options } = await scene(t);
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
    // Twice: asked, and from memory.
    for (const key of keys)
      statuses.push(await backend.status(key, path, method), await backend.status(key, path, method));
    t.same(
      statuses,
      expected.flatMap((status) => [status, status]),
      `${method} ${path}`,
    );
  }
});

t.test('a handler knows whose request it is', async (t) => {
  const { service, partner, own, reading, options } = await scene(t);
  const backend = await startBackend(t, options, routes);
  const seen = async (key: string, path = '/hello') =>
    ((await (await fetch(backend.url + path, { headers: { 'x-api-key': key } })).json()) as { key: unknown }).key;
  const expected = {
    id: reading.id,
    organizationId: service.organizationId,
    partnerId: partner.id,
    partnerEmail: 'p@p.example',
    permission: 'read',
    name: null,
    metadata: {},
    expiresAt: null,
  };
  t.strictSame(await seen(reading.key), expected);
  const plain = await fetch(`${backend.url}/hello`, { headers: { 'x-api-key': reading.key } });
  t.equal(plain.headers.get('ratelimit'), null, 'limits are sent only if that is configured');
  t.strictSame(await seen(reading.key), expected, 'from memory too');
  t.match(await seen(own.key), {
    partnerId: null,
    permission: 'read_write',
    name: 'Own',
    metadata: { team: 'billing' },
  });
  t.equal(await seen(own.key, '/open'), null);
});

t.test('a connection brings one key after the other, and each request is that of its own', async (t) => {
  const { service, own, reading, options } = await scene(t);
  const backend = await startBackend(t, options, routes);
  await eventually(async () => (await backend.status(reading.key)) === 200 && (await backend.status(own.key)) === 200);
  const connection = keepAliveClient(backend.url);
  t.teardown(() => connection.close());
  const seen = async (token: string) => {
    const { status, body } = await connection.ask('/hello', { token });
    return status === 200 ? JSON.parse(body).key.id : status;
  };
  // Of the same length, and the same but for the last character.
  const other = reading.key.slice(0, -1) + (reading.key.endsWith('0') ? '1' : '0');
  const order = [reading, reading, own, own, reading, own, reading];
  for (const { id, key } of order) {
    t.equal(await seen(key), id);
    t.equal(await seen(other), 401);
  }
  t.equal(await seen(own.key), own.id);
  await service.admin.delete(`/v1/keys/${own.id}`);
  await eventually(async () => (await seen(own.key)) === 401);
  t.equal(await seen(reading.key), reading.id);
  await backend.app.close();
  await service.verification.usage.flush();
  const uses = async ({ id }: { id: string }) =>
    (await service.admin.get(`/v1/keys/${id}/usage`)).body.total.allowed as number;
  t.ok((await uses(reading)) >= 6, 'each use is reported');
});

t.test('a key that was changed is asked about, though its connection has just brought it', async (t) => {
  const { service, own, options } = await scene(t);
  // So that its uses wait, and its text with them, for the whole test.
  const backend = await startBackend(t, { ...options, reportEveryMs: 60_000 }, routes);
  const connection = keepAliveClient(backend.url);
  t.teardown(() => connection.close());
  const status = async () => (await connection.ask('/hello', { token: own.key })).status;
  for (let turn = 0; turn < 3; turn++) t.equal(await status(), 200);
  await service.admin.post(`/v1/keys/${own.id}/suspend`, {});
  await eventually(async () => (await status()) === 401, 2_000);
  await service.admin.post(`/v1/keys/${own.id}/resume`, {});
  await eventually(async () => (await status()) === 200, 2_000);
});

t.test('refusals are problems with the headers that clients need', async (t) => {
  const { service, own, reading, options } = await scene(t);
  const { body: limited } = await service.admin.post('/v1/keys', { rateLimit: { requests: 2, windowSeconds: 60 } });
  const backend = await startBackend(t, { ...options, rateLimitFields: true }, routes);
  const ask = async (headers: Record<string, string>, path = '/hello', method = 'GET') => {
    const response = await fetch(backend.url + path, { method, headers });
    const text = await response.text();
    return {
      status: response.status,
      headers: Object.fromEntries(response.headers),
      body: text === '' ? {} : JSON.parse(text),
    };
  };
  const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
  const good = await ask(bearer(own.key));
  t.match(good.headers, { ratelimit: /^"owner";r=\d+;t=\d+$/, 'ratelimit-policy': '"owner";q=1000;w=60' });

  const none = await ask({});
  t.match(none, {
    status: 401,
    headers: {
      'www-authenticate': 'Bearer realm="api"',
      'content-type': /^application\/problem\+json/,
      'cache-control': 'no-store',
    },
  });
  t.match(none.body, { type: 'about:blank', title: 'Unauthorized', status: 401, code: 'unauthorized', requestId: /./ });
  const wrong = await ask(bearer('lk_k_nonsense'));
  const { requestId: _, ...said } = wrong.body;
  t.match(wrong, { status: 401, headers: { 'www-authenticate': /error="invalid_token"/ } });
  const { body: gone } = await service.admin.post('/v1/keys', { partnerId: reading.partnerId, permission: 'read' });
  await service.admin.delete(`/v1/keys/${gone.id}`);
  const { requestId: __, ...saidOfGone } = (await ask(bearer(gone.key))).body;
  t.same(saidOfGone, said, 'replies do not reveal which keys exist');
  t.match(await ask(bearer(reading.key), '/hello', 'POST'), {
    status: 403,
    headers: { 'www-authenticate': /error="insufficient_scope"/ },
    body: { code: 'forbidden' },
  });
  await ask(bearer(limited.key));
  await ask(bearer(limited.key));
  t.match(await ask(bearer(limited.key)), {
    status: 429,
    headers: { 'retry-after': /^\d+$/, ratelimit: /^"key";r=0;t=\d+$/, 'ratelimit-policy': '"key";q=2;w=60' },
    body: { code: 'rate_limited' },
  });
  t.match(await ask({ authorization: 'Basic abc' }), { status: 401, body: { code: 'unauthorized' } });
  t.match(await ask({ ...bearer(own.key), 'x-api-key': reading.key }), { status: 400, body: { code: 'bad_request' } });
  t.match(await ask({ ...bearer(own.key), 'x-api-key': own.key }), { status: 200 });
  for (const query of [`?key=${own.key}`, `?a=b&c=${own.key.replaceAll('_', '%5F')}`]) {
    t.match(
      await ask(bearer(own.key), `/hello${query}`),
      { status: 400, body: { code: 'bad_request' } },
      query.slice(0, 5),
    );
  }
  t.match(
    await ask(bearer(own.key), '/hello?token=next-page'),
    { status: 200 },
    'other parameters are the application’s',
  );
});

t.test('the application’s own header, cost and denial', async (t) => {
  const { own, reading, options } = await scene(t);
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
  const ask = (path: string, headers: Record<string, string>) => fetch(backend.url + path, { headers });
  const first = await ask('/hello', { 'x-acme-key': own.key });
  t.match(first.headers.get('ratelimit'), /r=990;/);
  const denied = await ask('/hello', { authorization: `Bearer ${own.key}` });
  t.equal(denied.status, 401, 'only in its own header');
  t.equal(denied.headers.get('x-why'), 'no key');
  t.same(await denied.json(), { error: 'unauthorized' });
  const forbidden = await ask('/writes', { 'x-acme-key': reading.key });
  t.equal(forbidden.status, 403);
  t.match(await forbidden.json(), { code: 'forbidden' }, 'the usual one where it says nothing');
});

for (const how of ['at once', 'later'] as const) {
  t.test(`an onDenied that fails ${how} neither allows the request nor leaves it without a reply`, async (t) => {
    const { service, options } = await scene(t);
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
    t.equal(await backend.status(key.key), 401, 'where Latchkey is asked first');
  });
}

t.test('the client’s address is the one that the application believes', async (t) => {
  const { service, options } = await scene(t);
  const { body: bound } = await service.admin.post('/v1/keys', { allowedIps: ['203.0.113.0/24'] });
  const asks = async (trustProxy: boolean) => {
    const backend = await startBackend(t, options, routes, { trustProxy });
    const headers = { 'x-api-key': bound.key, 'x-forwarded-for': '203.0.113.9' };
    const statuses = [];
    for (let turn = 0; turn < 3; turn++) statuses.push((await fetch(`${backend.url}/hello`, { headers })).status);
    const elsewhere = await fetch(`${backend.url}/hello`, {
      headers: { ...headers, 'x-forwarded-for': '198.51.100.1' },
    });
    return [...statuses, elsewhere.status];
  };
  t.same(await asks(false), [403, 403, 403, 403]);
  t.same(await asks(true), [200, 200, 200, 403], 'what is known of one address is not used for another');
});

t.test('only what is registered in its scope is protected', async (t) => {
  const { own, options } = await scene(t);
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

t.test('a permission that does not exist does not start', async (t) => {
  const { options } = await scene(t);
  const fastify = (await import('fastify')).default;
  const app = fastify();
  t.teardown(() => app.close());
  await app.register(latchkey, options);
  const config = { permission: 'reed' as 'read' };
  t.throws(() => app.get('/typo', { config }, async () => ({})), /config\.permission/);
});

t.test('registered before the routes, in whatever order they come after', async (t) => {
  const { options } = await scene(t);
  const fastify = (await import('fastify')).default;
  const app = fastify();
  t.teardown(() => app.close());
  app.register(latchkey, options);
  app.register(async (scope) => {
    scope.get('/late', async () => ({}));
  });
  t.equal((await app.inject('/late')).statusCode, 401);
});
