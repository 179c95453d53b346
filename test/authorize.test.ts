import { request as httpRequest, METHODS } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

// Gateways call this before they pass a request on. gateways.test.ts uses real gateways.

async function startGateway(t: Test, overrides: Parameters<typeof startService>[1] = {}) {
  const service = await startService(t, overrides);
  const { app, admin, verifier } = service;
  const input = { email: 'p@p.example', permissions: ['read', 'write'], externalId: '100% "Müller"\u{1f511}' };
  const { body: partner } = await admin.post('/v1/partners', input);
  const [reading, writing] = partner.keys;
  const { body: both } = await admin.post('/v1/keys', {});
  const authorize = async (
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
  return { ...service, partner, reading, writing, both, authorize, methodHeader };
}

t.test('200 names the owner of the key, in headers that are always present', async (t) => {
  const { authorize, methodHeader, reading, both, partner, organizationId } = await startGateway(t);
  const reply = await authorize(reading.key, methodHeader('GET'));
  t.equal(reply.status, 200);
  t.match(reply.headers, {
    'x-latchkey-key-id': reading.id,
    'x-latchkey-organization-id': organizationId,
    'x-latchkey-partner-id': partner.id,
    'x-latchkey-partner-external-id': '100%25%20%22M%C3%BCller%22%F0%9F%94%91',
    'x-latchkey-permission': 'read',
    'ratelimit-policy': '"owner";q=1000;w=60',
    ratelimit: '"owner";r=999;t=60',
    'cache-control': 'no-store',
  });
  const ofDefaultRow = await authorize(both.key, methodHeader('DELETE'));
  t.equal(ofDefaultRow.status, 200);
  t.equal(ofDefaultRow.headers['x-latchkey-partner-id'], '', 'empty, not missing');
  t.equal(ofDefaultRow.headers['x-latchkey-partner-external-id'], '', 'empty, not missing');
  t.equal(ofDefaultRow.headers['x-latchkey-permission'], 'read_write');
});

t.test('GET, HEAD and OPTIONS need read; everything else needs write', async (t) => {
  const { authorize, methodHeader, reading, writing } = await startGateway(t);
  const withOwnMethod = await authorize(writing.key, { method: 'QUERY', url: '/v1/authorize/search' });
  t.equal(withOwnMethod.status, 200, 'QUERY needs a Content-Type elsewhere');
  for (const method of METHODS) {
    const isReading = ['GET', 'HEAD', 'OPTIONS'].includes(method);
    const [mayRead, mayWrite] = [
      await authorize(reading.key, methodHeader(method)),
      await authorize(writing.key, methodHeader(method)),
    ];
    t.same([mayRead.status, mayWrite.status], isReading ? [200, 403] : [403, 200], method);
    const refused = isReading ? mayWrite : mayRead;
    t.equal(refused.headers['x-latchkey-code'], 'insufficient_permission');
    t.equal((await authorize(reading.key, { headers: { 'x-original-method': method } })).status, mayRead.status);
  }
});

t.test('two different keys in two Authorization headers are rejected', async (t) => {
  const { app, verifier, reading, both } = await startGateway(t);
  await app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = app.server.address() as AddressInfo;
  const authorize = (...keys: string[]) =>
    new Promise<number>((resolve, reject) => {
      const headers = ['host', 'x', 'x-latchkey-token', verifier.token, 'x-forwarded-method', 'GET'];
      for (const key of keys) headers.push('authorization', `Bearer ${key}`);
      const sent = httpRequest({ port, host: '127.0.0.1', path: '/v1/authorize', headers }, (response) => {
        response.resume().on('end', () => resolve(response.statusCode ?? 0));
      });
      sent.on('error', reject).end();
    });
  t.equal(await authorize(reading.key), 200);
  t.equal(await authorize(reading.key, reading.key), 200, 'the same key twice is accepted');
  t.equal(await authorize(reading.key, both.key), 401);
});

t.test("the client's method must be given exactly once", async (t) => {
  const { authorize, both } = await startGateway(t);
  const table: Array<[what: string, headers: Record<string, string | string[]>]> = [
    ['not given', {}],
    ['given twice, with different values', { 'x-forwarded-method': 'GET', 'x-original-method': 'POST' }],
    ['repeated', { 'x-forwarded-method': ['GET', 'GET'] }],
    ['a list', { 'x-original-method': 'GET, POST' }],
    ['empty', { 'x-forwarded-method': '' }],
    ['given in an unsupported header', { 'x-http-method-override': 'GET' }],
  ];
  for (const [what, headers] of table) {
    const { status, code } = await authorize(both.key, { headers });
    t.same([status, code], [403, 'forbidden'], what);
  }
  const same = { 'x-forwarded-method': 'POST', 'x-original-method': 'POST' };
  t.equal((await authorize(both.key, { headers: same })).status, 200, 'both and the same');
});

t.test(
  "on paths below /v1/authorize/ only the request's own method counts, because a client can forge the headers",
  async (t) => {
    const { authorize, reading, writing } = await startGateway(t);
    const forged = { 'x-forwarded-method': 'GET', 'x-original-method': 'GET' };
    for (const url of [
      '/v1/authorize/',
      '/v1/authorize/orders/7',
      '/v1/authorize/a%zz/%00?token=lk_k_x&q=%ff',
      `/v1/authorize/${'x'.repeat(2_000)}`,
    ]) {
      t.equal((await authorize(reading.key, { url })).status, 200, url.slice(0, 60));
      t.equal(
        (await authorize(reading.key, { url, method: 'POST', headers: forged })).status,
        403,
        'forged headers are ignored',
      );
      t.equal((await authorize(writing.key, { url, method: 'PURGE' })).status, 200);
    }
  },
);

t.test('body, content type and query of the client are ignored', async (t) => {
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

t.test('every invalid key gets the same 401; a valid key that lacks the right gets 403', async (t) => {
  const { authorize, methodHeader, admin, reading, writing, both, later, clock } = await startGateway(t);
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
    const { status, headers, code } = await authorize(key, methodHeader('GET'));
    t.same([status, code], [401, 'unauthorized'], what);
    t.equal(headers['x-latchkey-code'], undefined, 'the reason is not revealed');
    t.equal(headers['x-latchkey-key-id'], undefined);
    bodies.add(String(headers['www-authenticate']));
  }
  t.same([...bodies], ['Bearer realm="api", error="invalid_token", error_description="The API key is not accepted."']);

  await admin.patch(`/v1/keys/${both.id}`, { allowedIps: ['203.0.113.0/24'] });
  const fromOtherAddress = await authorize(both.key, methodHeader('GET'));
  t.same([fromOtherAddress.status, fromOtherAddress.headers['x-latchkey-code']], [403, 'ip_not_allowed']);
  const atAllowedAddress = await authorize(both.key, { ...methodHeader('GET'), remoteAddress: '203.0.113.9' });
  t.equal(atAllowedAddress.status, 200);
  t.equal(
    (await authorize(reading.key, { headers: { 'x-forwarded-method': 'GET', 'x-api-key': both.key } })).status,
    401,
    'two different keys are rejected',
  );
});

t.test('the key can be sent in X-API-Key', async (t) => {
  const { authorize, reading } = await startGateway(t);
  const headers = { 'x-forwarded-method': 'GET', 'x-api-key': reading.key };
  t.equal((await authorize(undefined, { headers })).status, 200);
  t.equal(
    (await authorize(undefined, { headers: { ...headers, authorization: `Bearer ${reading.key}` } })).status,
    200,
  );
  t.equal((await authorize(undefined, { headers: { ...headers, authorization: 'Basic dTpw' } })).status, 401);
});

t.test('an exceeded limit is 429 with Retry-After, or 403 for gateways that do not support 429', async (t) => {
  const { authorize, methodHeader, admin, reading } = await startGateway(t);
  await admin.put('/v1/rate-limit', { requests: 2, windowSeconds: 60 });
  for (const status of [200, 200, 429, 429])
    t.equal((await authorize(reading.key, methodHeader('GET'))).status, status);
  const limited = await authorize(reading.key, methodHeader('GET'));
  t.match(limited.headers, { 'x-latchkey-code': 'rate_limited', ratelimit: /^"owner";r=0;t=\d+$/ });
  t.match(limited.headers['retry-after'], /^\d+$/);
  const as403 = await authorize(reading.key, { ...methodHeader('GET'), url: '/v1/authorize?limitedStatus=403' });
  t.same([as403.status, as403.headers['x-latchkey-code']], [403, 'rate_limited']);
  t.match(as403.headers['retry-after'], /^\d+$/);
});

t.test('the client address in forwarded headers counts only if TRUST_PROXY includes the gateway', async (t) => {
  const forwarded = { 'x-forwarded-method': 'GET', 'x-forwarded-for': '203.0.113.9' };
  for (const [trustProxy, status] of [
    [['127.0.0.1'], 200],
    [false, 403],
  ] as const) {
    const { authorize, admin, both } = await startGateway(t, {
      trustProxy: trustProxy === false ? false : [...trustProxy],
    });
    await admin.patch(`/v1/keys/${both.id}`, { allowedIps: ['203.0.113.9'] });
    t.equal((await authorize(both.key, { headers: forwarded, remoteAddress: '127.0.0.1' })).status, status);
  }
});

t.test('a key of another organization is rejected', async (t) => {
  const { authorize, methodHeader, operator } = await startGateway(t);
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const { body: key } = await operator.post('/v1/keys', {}, { 'latchkey-organization': other.id });
  t.equal((await authorize(key.key, methodHeader('GET'))).status, 401);
});

t.test(
  'keyHeader names the only header in which the key is read, and leaves Authorization to the application',
  async (t) => {
    const { authorize, reading, both, logLines } = await startGateway(t);
    const get = { 'x-forwarded-method': 'GET' };
    const authorizeWith = (keyHeader: string, headers: Record<string, string | string[]>) =>
      authorize(undefined, { url: `/v1/authorize?keyHeader=${keyHeader}`, headers: { ...get, ...headers } });
    const applicationHeaders: Array<[what: string, authorization: string]> = [
      ['Basic', 'Basic YTpi'],
      ["the application's own token", 'Bearer eyJhbGciOiJub25lIn0.e30.'],
      ['another key', `Bearer ${both.key}`],
      ['nonsense', 'x'],
    ];
    for (const [what, authorization] of applicationHeaders) {
      const reply = await authorizeWith('x-api-key', { authorization, 'x-api-key': reading.key });
      t.match({ status: reply.status, id: reply.headers['x-latchkey-key-id'] }, { status: 200, id: reading.id }, what);
    }
    t.equal(
      (await authorizeWith('x-api-key', { authorization: `Bearer ${reading.key}` })).status,
      401,
      'a key in another header is ignored',
    );
    t.equal(
      (await authorizeWith('x-api-key', { 'x-api-key': [reading.key, reading.key] })).status,
      401,
      'a repeated header is rejected',
    );
    t.equal(
      (await authorizeWith('X-Acme-Key', { 'x-acme-key': reading.key, 'x-api-key': both.key })).status,
      200,
      'any header name works',
    );
    const asBearer = { authorization: `Bearer ${reading.key}`, 'x-api-key': 'of the application' };
    t.equal((await authorizeWith('authorization', asBearer)).status, 200);
    t.equal((await authorizeWith('authorization', { authorization: 'Basic YTpi' })).status, 401);
    t.equal((await authorizeWith('constructor', { 'x-api-key': reading.key })).status, 401);
    logLines.length = 0;
    for (const bad of ['', 'x%20y', 'x:', '%00', 'x-latchkey-token', 'x'.repeat(101), 'a&keyHeader=b']) {
      const reply = await authorizeWith(bad, { a: reading.key, 'x-api-key': reading.key });
      t.match({ status: reply.status, code: reply.code }, { status: 503, code: 'unavailable' }, bad.slice(0, 20));
    }
    t.equal(logLines.filter((line) => line.includes('keyHeader is ')).length, 7, 'the log says why');
  },
);
