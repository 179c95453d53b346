import { once } from 'node:events';
import { type AddressInfo, connect } from 'node:net';
import type { Test } from 'tap';
import { type Json, startService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// Requests that hardly any HTTP library can send.

interface RawReply {
  status: number;
  head: string;
  body: string;
  json(): Json;
}

async function startListening(t: Test) {
  const service = await startService(t);
  await service.app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = service.app.server.address() as AddressInfo;
  const send = async (start: string, headers: readonly string[] = ['Host: latchkey'], body = ''): Promise<RawReply> => {
    const socket = connect(port, '127.0.0.1');
    const received: Buffer[] = [];
    socket.on('data', (chunk) => received.push(chunk));
    socket.on('error', () => undefined);
    await once(socket, 'connect');
    socket.write([`${start} HTTP/1.1`, ...headers, 'Connection: close', '', body].join('\r\n'));
    await once(socket, 'close');
    const [head = '', ...rest] = Buffer.concat(received).toString().split('\r\n\r\n');
    const text = rest.join('\r\n\r\n');
    return { status: Number(head.split(' ')[1]), head: head.toLowerCase(), body: text, json: () => JSON.parse(text) };
  };
  return { ...service, send };
}

const isProblem = (t: Test, reply: RawReply, status: number, code: string, what: string) => {
  t.equal(reply.status, status, what);
  t.match(reply.head, 'content-type: application/problem+json', what);
  t.equal(reply.json().code, code, what);
};

t.test('a request with other than one host is rejected', async (t) => {
  const { send, verifier } = await startListening(t);
  const authorization = `Authorization: Bearer ${verifier.token}`;
  const hosts: Array<[what: string, headers: string[]]> = [
    ['two', ['Host: latchkey', 'Host: elsewhere']],
    ['the same host twice, in other letter case', ['host: latchkey', 'HOST: latchkey']],
    ['a list', ['Host: latchkey, elsewhere']],
    ['a path', ['Host: latchkey/v1']],
    ['with a user', ['Host: user@latchkey']],
    ['with a space', ['Host: latch key']],
  ];
  for (const [what, headers] of hosts) {
    for (const path of ['/livez', '/v1/self', '/v1/authorize']) {
      const reply = await send(`GET ${path}`, [...headers, authorization]);
      t.equal(reply.status, path === '/v1/authorize' ? 503 : 400, `${what} at ${path}`);
    }
    isProblem(t, await send('GET /livez', headers), 400, 'bad_request', what);
  }
  for (const host of ['latchkey', 'latchkey:8080', '[::1]:8080', '127.0.0.1', '']) {
    t.equal((await send('GET /livez', [`Host: ${host}`])).status, 200, host);
  }
});

t.test('an unsupported Expect header is a problem', async (t) => {
  const { send, admin, logLines } = await startListening(t);
  const authorization = `Authorization: Bearer ${admin.token}`;
  for (const [start, expect] of [
    ['GET /livez', 'x'],
    ['GET /nowhere', 'x'],
    ['POST /v1/keys', '200-ok'],
    ['GET /metrics', 'x'],
  ] as const) {
    const reply = await send(start, ['Host: latchkey', `Expect: ${expect}`, authorization]);
    isProblem(t, reply, 417, 'expectation_failed', start);
    t.match(reply.head, 'x-request-id: ');
  }
  t.same((await admin.get('/v1/keys')).body.data, []);
  t.match(logLines.join(''), /"path":"\/v1\/keys","status":417/, 'each request has a log line');
  const body = '{}';
  const continued = await send(
    'POST /v1/keys',
    ['Host: x', 'Expect: 100-continue', authorization, 'Content-Type: application/json', 'Content-Length: 2'],
    body,
  );
  t.equal(continued.status, 100);
  t.match(continued.body, /^HTTP\/1\.1 201 /);
});

t.test('a body with a content coding is rejected, and the reply names the supported coding', async (t) => {
  const { app, admin, verifier } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const post = (url: string, headers: Record<string, string>, token = admin.token, payload = '{}') =>
    app.inject({
      method: 'POST',
      url,
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', ...headers },
      payload,
    });
  const table: Array<[url: string, token: string, payload: string, type: string]> = [
    ['/v1/keys', admin.token, '{}', 'application/json'],
    [`/v1/keys/${key.id}/suspend`, admin.token, '{}', 'application/json'],
    ['/v1/verify', verifier.token, JSON.stringify({ key: key.key, permission: 'read' }), 'application/json'],
    ['/v1/verify/batch', verifier.token, '{"entries":[]}', 'application/json'],
    ['/v1/introspect', verifier.token, `token=${key.key}`, 'application/x-www-form-urlencoded'],
  ];
  for (const [url, token, payload, type] of table) {
    for (const coding of ['gzip', 'GZIP', 'br', 'identity, gzip', 'x']) {
      const reply = await post(url, { 'content-encoding': coding, 'content-type': type }, token, payload);
      t.equal(reply.statusCode, 415, `${url} ${coding}`);
      t.equal(reply.headers['accept-encoding'], 'identity');
      t.equal(reply.json().code, 'unsupported_media_type');
    }
  }
  t.match((await admin.get(`/v1/keys/${key.id}`)).body, { suspendedAt: null }, 'nothing was changed');
  t.equal((await post('/v1/keys', { 'content-encoding': 'identity' })).statusCode, 201);
  t.equal(
    (await admin.get('/v1/keys', { 'content-encoding': 'gzip' })).status,
    200,
    'the header without a body is accepted',
  );
  const gateway = {
    'content-encoding': 'gzip',
    'x-latchkey-token': verifier.token,
    'x-forwarded-method': 'POST',
    authorization: `Bearer ${key.key}`,
  };
  t.equal(
    (await post('/v1/authorize', gateway, key.key)).statusCode,
    200,
    "headers of a gateway's client are not checked",
  );
});

t.test('a body in an unsupported transfer coding is rejected', async (t) => {
  const { send, admin } = await startListening(t);
  const headers = ['Host: latchkey', `Authorization: Bearer ${admin.token}`, 'Content-Type: application/json'];
  for (const coding of ['gzip, chunked', 'x, chunked', 'identity, chunked']) {
    const reply = await send('POST /v1/keys', [...headers, `Transfer-Encoding: ${coding}`], '2\r\n{}\r\n0\r\n\r\n');
    isProblem(t, reply, 415, 'unsupported_media_type', coding);
  }
  t.equal((await admin.get('/v1/keys')).body.data.length, 0, 'nothing was changed');
  const chunked = await send('POST /v1/keys', [...headers, 'Transfer-Encoding: Chunked'], '2\r\n{}\r\n0\r\n\r\n');
  t.equal(chunked.status, 201);
});

t.test('a token in any part of a URL is rejected, in any encoding', async (t) => {
  const { send, admin } = await startListening(t);
  const { body: createdKey } = await admin.post('/v1/keys', {});
  const key: string = createdKey.key;
  const encode = (text: string) =>
    [...text].map((character) => `%${character.charCodeAt(0).toString(16).padStart(2, '0')}`).join('');
  const once = key.replaceAll('_', '%5f');
  const headers = ['Host: latchkey', `Authorization: Bearer ${admin.token}`];
  const refused = [
    `/v1/keys?limit=1?access_token=x`,
    `/v1/keys?limit=1?x=${key}`,
    `/v1/keys?limit=1&a=${once}`,
    `/v1/keys?a=${encode(key)}`,
    `/v1/keys?a=${once.replaceAll('%', '%25')}`,
    `/v1/keys?${key}`,
    `/v1/keys?%61pi_key=x`,
    `/v1/keys?limit=1;token=x`,
    `/v1/keys?limit=1#access_token=x`,
    `/v1/keys#${key}`,
    `/v1/keys/${key}`,
    `/v1/keys/${encode(key)}`,
    `/nowhere/${once}`,
    `/openapi.json?${key}`,
    `/docs/static/${key}`,
  ];
  for (const url of refused) {
    isProblem(t, await send(`GET ${url}`, headers), 400, 'bad_request', url.replace(key, '…'));
  }
  t.equal((await send(`GET /v1/keys/${createdKey.id}`, headers)).status, 200);
  t.equal((await send(`GET /v1/keys?limit=1&metadata=50%25`, headers)).status, 400, 'another mistake');
});

t.test('a missing file below /docs/static is 404, whatever the spelling', async (t) => {
  const { send, logLines } = await startListening(t);
  const paths = [
    '/docs/static/../x',
    '/docs/static/../../package.json',
    '/docs/static/%2e%2e/x',
    '/docs/static/..%2f..%2fpackage.json',
    '/docs/static/%252e%252e%252fx',
    '/docs/static/..%5c..%5cpackage.json',
    '/docs/static/nothing.js',
    '/docs/static/nothing/at/all',
    '/docs/static/.hidden',
    '/docs/static/%00',
    '/docs/static//etc/passwd',
  ];
  for (const path of paths) {
    isProblem(t, await send(`GET ${path}`), 404, 'not_found', path);
    t.equal((await send(`HEAD ${path}`)).status, 404, `HEAD ${path}`);
  }
  t.equal((await send('POST /docs/static/swagger-ui.css')).status, 405);
  t.equal((await send('GET /docs/static/swagger-ui.css')).status, 200);
  for (const line of logLines) t.notMatch(line, '"stack"');
});

t.test('a problem repeats only a bounded part of the request', async (t) => {
  const { app, admin } = await startService(t);
  const names = (count: number, length: number) =>
    Array.from({ length: count }, (_, index) => String(index).padStart(length, 'x'));
  const members = (count: number, length: number) => Object.fromEntries(names(count, length).map((name) => [name, 1]));
  const replies = {
    'many parameters': await admin.get(`/v1/keys?${names(4_000, 1).join('&')}`),
    'long parameters': await admin.get(`/v1/keys?${names(3, 5_000).join('&')}`),
    'many members': await admin.post('/v1/keys', members(6_000, 1)),
    'long members': await admin.post('/v1/keys', members(3, 20_000)),
    'many nested members': await admin.post('/v1/keys', { rateLimit: members(6_000, 1) }),
    'a long name with U+0000': await admin.post('/v1/keys', { [`${'é'.repeat(20_000)}\u0000`]: 1 }),
    'a long parameter with U+0000': await admin.get(`/v1/keys?${'x'.repeat(10_000)}=%00`),
    'many wrong entries': await admin.post('/v1/keys', { allowedIps: names(5_000, 3) }),
    'a long path': await admin.get(`/${'x'.repeat(15_000)}`),
    'a long id': await admin.get(`/v1/keys/${'x'.repeat(15_000)}`),
  };
  for (const [what, { status, body }] of Object.entries(replies)) {
    t.ok([400, 404].includes(status), what);
    const { length } = JSON.stringify(body);
    t.ok(length < 25_000, `${what}: ${length} bytes`);
    t.ok((body.errors ?? []).length <= 50);
    t.notOk(
      /[\ud800-\udfff]/.test(body.detail.replaceAll(/[\ud800-\udbff][\udc00-\udfff]/g, '')),
      'characters are not cut',
    );
  }
  t.match(replies['many members'].body, { code: 'validation_failed', errors: [{ path: 'body.0' }] });
  const url = `/v1/introspect`;
  const { body: verifier } = await admin.post('/v1/access-tokens', { role: 'verifier', scopes: ['read'], name: 'v' });
  const form = await app.inject({
    method: 'POST',
    url,
    headers: { authorization: `Bearer ${verifier.token}`, 'content-type': 'application/x-www-form-urlencoded' },
    payload: names(900, 60).join('&'),
  });
  t.ok(form.body.length < 25_000, `a form: ${form.body.length} bytes`);
});

t.test('a connection that ends within a body is a bad request, not a fault of the database', async (t) => {
  const { app, logLines } = await startListening(t);
  const { port } = app.server.address() as AddressInfo;
  const badRequests = async () => {
    const text = (await app.inject('/metrics')).body;
    t.match(text, 'latchkey_problems_total{code="unavailable"} 0');
    return Number(/problems_total\{code="bad_request"\} (\d+)/.exec(text)?.[1]);
  };
  for (const [index, how] of (['resetAndDestroy', 'destroy'] as const).entries()) {
    const socket = connect(port, '127.0.0.1');
    socket.on('error', () => undefined);
    const headers = ['Host: latchkey', 'Content-Type: application/json', 'Content-Length: 500', 'Expect: 100-continue'];
    socket.write(`POST /v1/leaks HTTP/1.1\r\n${headers.join('\r\n')}\r\n\r\n`);
    await once(socket, 'data');
    socket.write('{"key":', () => socket[how]());
    await eventually(async () => (await badRequests()) === index + 1);
  }
  t.notMatch(logLines.join(''), /"level":(?:40|50|60)/);
});
