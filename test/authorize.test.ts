import { request as httpRequest, METHODS } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

// What a gateway asks before it passes its client's request on. With real gateways: gateways.test.ts.

async function startGateway(t: Test, overrides: Parameters<typeof startService>[1] = {}) {
  const service = await startService(t, overrides);
  const { app, admin, verifier } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const [reading, writing] = partner.keys;
  const { body: both } = await admin.post('/v1/keys', {});
  const ask = async (
    key: string | undefined,
    { method = 'GET', url = '/v1/authorize', headers = {}, remoteAddress = '198.51.100.1' } = {} as {
      method?: string;
      url?: string;
      headers?: Record<string, string | string[]>;
      remoteAddress?: string;
    },
  ) => {
    const response = await app.inject({
      method: method as 'GET',
      url,
      remoteAddress,
      headers: {
        'x-latchkey-token': verifier.token,
        ...(key === undefined ? {} : { authorization: `Bearer ${key}` }),
        ...headers,
      },
    });
    const { statusCode: status, headers: replied } = response;
    return { status, headers: replied, code: response.body === '' ? undefined : (response.json().code as string) };
  };
  const methodHeader = (method: string) => ({ headers: { 'x-forwarded-method': method } });
  return { ...service, partner, reading, writing, both, ask, methodHeader };
}

t.test('200 names the owner of the key, in headers that are always present', async (t) => {
  const { ask, methodHeader, reading, both, partner, organizationId } = await startGateway(t);
  const reply = await ask(reading.key, methodHeader('GET'));
  t.equal(reply.status, 200);
  t.match(reply.headers, {
    'x-latchkey-key-id': reading.id,
    'x-latchkey-organization-id': organizationId,
    'x-latchkey-partner-id': partner.id,
    'x-latchkey-permission': 'read',
    'ratelimit-policy': '"owner";q=1000;w=60',
    ratelimit: '"owner";r=999;t=60',
    'cache-control': 'no-store',
  });
  const ofDefaultRow = await ask(both.key, methodHeader('DELETE'));
  t.equal(ofDefaultRow.status, 200);
  t.equal(ofDefaultRow.headers['x-latchkey-partner-id'], '', 'empty, not missing');
  t.equal(ofDefaultRow.headers['x-latchkey-permission'], 'read_write');
});

t.test('GET, HEAD and OPTIONS need read; everything else needs write', async (t) => {
  const { ask, methodHeader, reading, writing } = await startGateway(t);
  const own = await ask(writing.key, { method: 'QUERY', url: '/v1/authorize/search' });
  t.equal(own.status, 200, 'QUERY needs a Content-Type elsewhere');
  for (const method of METHODS) {
    const isReading = ['GET', 'HEAD', 'OPTIONS'].includes(method);
    const [mayRead, mayWrite] = [
      await ask(reading.key, methodHeader(method)),
      await ask(writing.key, methodHeader(method)),
    ];
    t.same([mayRead.status, mayWrite.status], isReading ? [200, 403] : [403, 200], method);
    const refused = isReading ? mayWrite : mayRead;
    t.equal(refused.headers['x-latchkey-code'], 'insufficient_permission');
    t.equal((await ask(reading.key, { headers: { 'x-original-method': method } })).status, mayRead.status);
  }
});

t.test('two keys in two Authorization fields are no key', async (t) => {
  const { app, verifier, reading, both } = await startGateway(t);
  await app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = app.server.address() as AddressInfo;
  const ask = (...keys: string[]) =>
    new Promise<number>((resolve, reject) => {
      const headers = ['host', 'x', 'x-latchkey-token', verifier.token, 'x-forwarded-method', 'GET'];
      for (const key of keys) headers.push('authorization', `Bearer ${key}`);
      const sent = httpRequest({ port, host: '127.0.0.1', path: '/v1/authorize', headers }, (response) => {
        response.resume().on('end', () => resolve(response.statusCode ?? 0));
      });
      sent.on('error', reject).end();
    });
  t.equal(await ask(reading.key), 200);
  t.equal(await ask(reading.key, reading.key), 200, 'twice the same is one');
  t.equal(await ask(reading.key, both.key), 401);
});

t.test("the client's method must be given exactly once", async (t) => {
  const { ask, both } = await startGateway(t);
  const table: Array<[what: string, headers: Record<string, string | string[]>]> = [
    ['not given', {}],
    ['given twice, with different values', { 'x-forwarded-method': 'GET', 'x-original-method': 'POST' }],
    ['repeated', { 'x-forwarded-method': ['GET', 'GET'] }],
    ['a list', { 'x-original-method': 'GET, POST' }],
    ['empty', { 'x-forwarded-method': '' }],
    ['given in a header that is not read', { 'x-http-method-override': 'GET' }],
  ];
  for (const [what, headers] of table) {
    const { status, code } = await ask(both.key, { headers });
    t.same([status, code], [403, 'forbidden'], what);
  }
  const same = { 'x-forwarded-method': 'POST', 'x-original-method': 'POST' };
  t.equal((await ask(both.key, { headers: same })).status, 200, 'both and the same');
});

t.test("a path behind /v1/authorize/ is the client's: only its own method counts", async (t) => {
  const { ask, reading, writing } = await startGateway(t);
  const forged = { 'x-forwarded-method': 'GET', 'x-original-method': 'GET' };
  for (const url of [
    '/v1/authorize/',
    '/v1/authorize/orders/7',
    '/v1/authorize/a%zz/%00?token=lk_k_x&q=%ff',
    `/v1/authorize/${'x'.repeat(2_000)}`,
  ]) {
    t.equal((await ask(reading.key, { url })).status, 200, url.slice(0, 60));
    t.equal(
      (await ask(reading.key, { url, method: 'POST', headers: forged })).status,
      403,
      'forged headers do not help',
    );
    t.equal((await ask(writing.key, { url, method: 'PURGE' })).status, 200);
  }
});

t.test('body, content type and query are not looked at', async (t) => {
  const { app, verifier, both } = await startGateway(t);
  await app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = app.server.address() as AddressInfo;
  const send = (path: string, contentType: string, body: string | Buffer) =>
    new Promise<number>((resolve, reject) => {
      const headers = {
        'x-latchkey-token': verifier.token,
        authorization: `Bearer ${both.key}`,
        'x-forwarded-method': 'POST',
        'content-type': contentType,
      };
      const sent = httpRequest({ port, host: '127.0.0.1', method: 'POST', path, headers }, (response) => {
        response.resume().on('end', () => resolve(response.statusCode ?? 0));
      });
      sent.on('error', reject);
      sent.end(body);
    });
  for (const path of ['/v1/authorize', '/v1/authorize/orders', '/v1/authorize/../keys']) {
    t.equal(await send(path, 'application/json', '{"broken'), 200);
    t.equal(await send(path, 'nonsense', 'x'), 200);
    t.equal(await send(`${path}?more=1&more=2`, 'multipart/form-data', Buffer.alloc(60_000)), 200);
  }
});

t.test('401 for whatever is wrong with the key itself, all alike; 403 where it may not do this', async (t) => {
  const { ask, methodHeader, admin, reading, writing, both, later, clock } = await startGateway(t);
  const expiresAt = new Date(clock.nowMs() + 60_000).toISOString();
  const { body: expiring } = await admin.post('/v1/keys', { expiresAt });
  later(120_000);
  await admin.delete(`/v1/keys/${writing.id}?reason=compromised`);
  const bodies = new Set<string>();
  for (const [what, key] of [
    ['none', undefined],
    ['malformed', 'nonsense'],
    ['deleted', writing.key],
    ['expired', expiring.key],
  ] as const) {
    const { status, headers, code } = await ask(key, methodHeader('GET'));
    t.same([status, code], [401, 'unauthorized'], what);
    t.equal(headers['x-latchkey-code'], undefined, 'it does not say why');
    t.equal(headers['x-latchkey-key-id'], undefined);
    bodies.add(String(headers['www-authenticate']));
  }
  t.same([...bodies], ['Bearer realm="api", error="invalid_token", error_description="The API key is not accepted."']);

  await admin.patch(`/v1/keys/${both.id}`, { allowedIps: ['203.0.113.0/24'] });
  const elsewhere = await ask(both.key, methodHeader('GET'));
  t.same([elsewhere.status, elsewhere.headers['x-latchkey-code']], [403, 'ip_not_allowed']);
  const there = await ask(both.key, { ...methodHeader('GET'), remoteAddress: '203.0.113.9' });
  t.equal(there.status, 200);
  t.equal(
    (await ask(reading.key, { headers: { 'x-forwarded-method': 'GET', 'x-api-key': both.key } })).status,
    401,
    'two keys that differ are no key',
  );
});

t.test('the key is taken from X-API-Key too', async (t) => {
  const { ask, reading } = await startGateway(t);
  const headers = { 'x-forwarded-method': 'GET', 'x-api-key': reading.key };
  t.equal((await ask(undefined, { headers })).status, 200);
  t.equal((await ask(undefined, { headers: { ...headers, authorization: `Bearer ${reading.key}` } })).status, 200);
  t.equal((await ask(undefined, { headers: { ...headers, authorization: 'Basic dTpw' } })).status, 401);
});

t.test('429 with Retry-After and the limit; 403 for gateways that know no 429', async (t) => {
  const { ask, methodHeader, admin, reading } = await startGateway(t);
  await admin.put('/v1/rate-limit', { requests: 2, windowSeconds: 60 });
  for (const status of [200, 200, 429, 429]) t.equal((await ask(reading.key, methodHeader('GET'))).status, status);
  const limited = await ask(reading.key, methodHeader('GET'));
  t.match(limited.headers, { 'x-latchkey-code': 'rate_limited', ratelimit: /^"owner";r=0;t=\d+$/ });
  t.match(limited.headers['retry-after'], /^\d+$/);
  const as403 = await ask(reading.key, { ...methodHeader('GET'), url: '/v1/authorize?limitedStatus=403' });
  t.same([as403.status, as403.headers['x-latchkey-code']], [403, 'rate_limited']);
  t.match(as403.headers['retry-after'], /^\d+$/);
});

t.test("the client's address is the gateway's word only where TRUST_PROXY says so", async (t) => {
  const forwarded = { 'x-forwarded-method': 'GET', 'x-forwarded-for': '203.0.113.9' };
  for (const [trustProxy, status] of [
    [['127.0.0.1'], 200],
    [false, 403],
  ] as const) {
    const { ask, admin, both } = await startGateway(t, { trustProxy: trustProxy === false ? false : [...trustProxy] });
    await admin.patch(`/v1/keys/${both.id}`, { allowedIps: ['203.0.113.9'] });
    t.equal((await ask(both.key, { headers: forwarded, remoteAddress: '127.0.0.1' })).status, status);
  }
});

t.test("another organization's key is no key", async (t) => {
  const { ask, methodHeader, operator } = await startGateway(t);
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const { body: key } = await operator.post('/v1/keys', {}, { 'latchkey-organization': other.id });
  t.equal((await ask(key.key, methodHeader('GET'))).status, 401);
});

t.test('keyHeader names the one header in which the key is, and leaves Authorization to the application', async (t) => {
  const { ask, reading, both, logLines } = await startGateway(t);
  const get = { 'x-forwarded-method': 'GET' };
  const asked = (keyHeader: string, headers: Record<string, string | string[]>) =>
    ask(undefined, { url: `/v1/authorize?keyHeader=${keyHeader}`, headers: { ...get, ...headers } });
  const own: Array<[what: string, authorization: string]> = [
    ['Basic', 'Basic YTpi'],
    ["the application's own token", 'Bearer eyJhbGciOiJub25lIn0.e30.'],
    ['another key', `Bearer ${both.key}`],
    ['nonsense', 'x'],
  ];
  for (const [what, authorization] of own) {
    const reply = await asked('x-api-key', { authorization, 'x-api-key': reading.key });
    t.match({ status: reply.status, id: reply.headers['x-latchkey-key-id'] }, { status: 200, id: reading.id }, what);
  }
  t.equal((await asked('x-api-key', { authorization: `Bearer ${reading.key}` })).status, 401, 'nowhere else');
  t.equal((await asked('x-api-key', { 'x-api-key': [reading.key, reading.key] })).status, 401, 'once');
  t.equal((await asked('X-Acme-Key', { 'x-acme-key': reading.key, 'x-api-key': both.key })).status, 200, 'any name');
  const asBearer = { authorization: `Bearer ${reading.key}`, 'x-api-key': 'of the application' };
  t.equal((await asked('authorization', asBearer)).status, 200);
  t.equal((await asked('authorization', { authorization: 'Basic YTpi' })).status, 401);
  t.equal((await asked('constructor', { 'x-api-key': reading.key })).status, 401);
  logLines.length = 0;
  for (const bad of ['', 'x%20y', 'x:', '%00', 'x-latchkey-token', 'x'.repeat(101), 'a&keyHeader=b']) {
    const reply = await asked(bad, { a: reading.key, 'x-api-key': reading.key });
    t.match({ status: reply.status, code: reply.code }, { status: 503, code: 'unavailable' }, bad.slice(0, 20));
  }
  t.equal(logLines.filter((line) => line.includes('keyHeader is ')).length, 7, 'the log says why');
});
