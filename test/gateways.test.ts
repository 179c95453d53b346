import { createHash, randomBytes } from 'node:crypto';
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { startService, type TestService } from './support/app.ts';
import {
  type Backend,
  identityIn,
  listenInSilence,
  type Passed,
  type StartGateway,
  send,
  startBackend,
  startCaddy,
  startHaproxy,
  startNginx,
} from './support/gateways.ts';
import { freePort } from './support/ports.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// Runs the snippets of docs/gateways.md in the real gateways, between real clients, Latchkey and a backend.

for (const [program, start, connectionsAtMost] of [
  ['nginx', startNginx, 2],
  ['caddy', startCaddy, 2],
  ['haproxy', startHaproxy, 2],
] as const) {
  t.test(`${program} works with the snippet of docs/gateways.md`, { skip: unlessInstalled(program) }, (t) =>
    runStory(t, start, connectionsAtMost),
  );
  // The page has no such recipe for HAProxy.
  if (program === 'haproxy') continue;
  t.test(`${program} leaves Authorization to the application`, { skip: unlessInstalled(program) }, (t) =>
    leavesAuthorization(t, start),
  );
}

async function leavesAuthorization(t: Test, start: StartGateway): Promise<void> {
  const service = await startService(t, { trustProxy: ['127.0.0.1'] });
  await service.app.listen({ port: 0, host: '127.0.0.1' });
  const latchkeyPort = (service.app.server.address() as AddressInfo).port;
  const backend = await startBackend(t);
  const { token } = service.verifier;
  const { port } = await start(t, { latchkeyPort, backendPort: backend.port, token, leavesAuthorization: true });
  const [reading, other] = await Promise.all([newKey(service, 'read'), newKey(service, 'read')]);
  for (const authorization of ['Basic YTpi', 'Bearer of-the-application', `Bearer ${other.key}`]) {
    const reply = await send(port, { headers: { authorization, 'x-api-key': reading.key } });
    t.equal(reply.status, 200, authorization.slice(0, 12));
    const passed = latest(backend);
    t.equal(passed.headers.authorization, authorization, 'the application gets its own header');
    t.equal(passed.headers['x-api-key'], undefined, 'the key is not forwarded');
    t.same(identityIn(passed), reading.identity);
  }
  const byBearer = { authorization: `Bearer ${reading.key}` };
  const path = '/?keyHeader=authorization';
  for (const headers of [byBearer, { ...byBearer, 'x-api-key': 'nonsense' }]) {
    const reply = await passesNothing(t, backend, send(port, { headers, path }));
    t.equal(reply.status, 401, 'a client cannot choose another header');
  }
}

/** @param connectionsAtMost the most connections that 24 calls may use */
async function runStory(t: Test, start: StartGateway, connectionsAtMost: number): Promise<void> {
  // The gateway calls from 127.0.0.1. Clients call from this and other addresses of the machine.
  const service = await startService(t, { trustProxy: ['127.0.0.1'] });
  await service.app.listen({ port: 0, host: '127.0.0.1' });
  const latchkeyPort = (service.app.server.address() as AddressInfo).port;
  const backend = await startBackend(t);
  const token = service.verifier.token;
  const gateway = await start(t, { latchkeyPort, backendPort: backend.port, token });
  const client = (options: Parameters<typeof send>[1]) => send(gateway.port, options);
  const [reading, writing] = await Promise.all([newKey(service, 'read'), newKey(service, 'write')]);

  await t.test('a valid key passes, and the backend gets its owner', async (t) => {
    for (const headers of [{ 'x-api-key': reading.key }, { authorization: `Bearer ${reading.key}` }]) {
      const reply = await client({ path: '/some/path?page=2', headers });
      t.match(reply, { status: 200, text: 'the backend' });
      t.match(reply.headers['ratelimit'], /^"owner";r=\d+;t=\d+$/, 'the client gets its limit');
      t.match(reply.headers['ratelimit-policy'], '"owner";q=1000;w=60');
      const passed = latest(backend);
      t.match(passed, { method: 'GET', url: '/some/path?page=2' });
      t.equal(passed.headers['x-forwarded-for'], '127.0.0.1');
      t.match(passed.headers.host, new RegExp(`^127\\.0\\.0\\.1(:${gateway.port})?$`), 'the host is the client’s');
      t.same(identityIn(passed), reading.identity);
      t.notOk(
        passed.fields.some(([, value]) => value.includes(reading.key)),
        'the key is not forwarded',
      );
    }
    const direct = await client({ path: '/_latchkey', headers: { 'x-api-key': reading.key } });
    t.equal(direct.headers['x-latchkey-key-id'], undefined, 'a client cannot use the internal location');
    for (const status of [401, 403, 500]) {
      const reply = await client({ path: `/${status}`, headers: { 'x-api-key': reading.key } });
      t.match(reply, { status, text: 'the backend' }, 'statuses of the backend are passed on');
    }
  });

  await t.test("an organization's own key has no partner, whatever the client sends", async (t) => {
    const { body: own } = await service.admin.post('/v1/keys', {});
    const { 'x-latchkey-partner-id': partner = '', 'x-latchkey-partner-external-id': externalId = '' } =
      reading.identity;
    const forged = { 'x-latchkey-partner-id': partner, 'x-latchkey-partner-external-id': externalId };
    await client({ headers: { 'x-api-key': own.key, ...forged } });
    t.same(identityIn(latest(backend)), {
      'x-latchkey-key-id': own.id,
      'x-latchkey-organization-id': service.organizationId,
      'x-latchkey-partner-id': '',
      'x-latchkey-partner-external-id': '',
      'x-latchkey-permission': 'read_write',
    });
  });

  await t.test('a read key cannot write, and a write key cannot read', async (t) => {
    for (const [method, allowed, refused] of [
      ['GET', reading, writing],
      ['OPTIONS', reading, writing],
      ['POST', writing, reading],
      ['PUT', writing, reading],
      ['PATCH', writing, reading],
      ['DELETE', writing, reading],
    ] as const) {
      t.equal((await client({ method, headers: { 'x-api-key': allowed.key } })).status, 200, method);
      t.same([latest(backend).method, identityIn(latest(backend))], [method, allowed.identity]);
      const reply = await passesNothing(t, backend, client({ method, headers: { 'x-api-key': refused.key } }));
      t.match(reply, { status: 403, headers: { 'x-latchkey-code': 'insufficient_permission' } }, method);
    }
  });

  await t.test('without a valid key the reply is 401 with a challenge', async (t) => {
    const other = reading.key.slice(0, -1);
    for (const headers of [
      {},
      { 'x-api-key': '' },
      { 'x-api-key': other },
      { authorization: 'Basic YTpi' },
      { authorization: `Bearer ${writing.key}`, 'x-api-key': reading.key },
      { 'x-api-key': token },
      { 'x-api-key': other, 'x-latchkey-token': token, 'x-latchkey-key-id': reading.id },
    ]) {
      const reply = await passesNothing(t, backend, client({ headers }));
      t.equal(reply.status, 401);
      t.match(reply.headers['www-authenticate'], /^Bearer realm="api", error="invalid_token"/);
    }
  });

  await t.test('a client that claims another method gains nothing', async (t) => {
    for (const forged of methodForgeries) {
      const asReader = { method: 'POST', headers: { 'x-api-key': reading.key, ...forged } };
      const reply = await passesNothing(t, backend, client({ ...asReader, body: Buffer.from('x') }));
      t.match(
        reply,
        { status: 403, headers: { 'x-latchkey-code': 'insufficient_permission' } },
        JSON.stringify(forged),
      );
      const asWriter = { method: 'POST', headers: { 'x-api-key': writing.key, ...forged } };
      t.equal((await client(asWriter)).status, 200, 'its own request still passes');
      t.notOk(
        latest(backend).fields.some(([name]) => /override|http.method/.test(name)),
        'the backend gets no override header',
      );
    }
  });

  await t.test('identity headers of a client are ignored', async (t) => {
    for (const forged of identityForgeries) {
      const reply = await client({ headers: { 'x-api-key': reading.key, ...forged } });
      t.equal(reply.status, 200);
      t.same(identityIn(latest(backend)), reading.identity, JSON.stringify(forged));
    }
  });

  await t.test(
    "allowed addresses are compared with the client's real address, whatever it claims",
    { skip: process.platform !== 'linux' && 'only Linux has the other addresses of 127.0.0.0/8' },
    async (t) => {
      const limited = await newKey(service, 'read', { allowedIps: ['127.0.0.2'] });
      const headers = { 'x-api-key': limited.key };
      t.equal((await client({ headers, from: '127.0.0.2' })).status, 200);
      for (const from of ['127.0.0.3', '127.0.0.1']) {
        for (const forged of [{}, ...addressForgeries]) {
          const reply = await passesNothing(t, backend, client({ headers: { ...headers, ...forged }, from }));
          t.match(reply, { status: 403, headers: { 'x-latchkey-code': 'ip_not_allowed' } }, from);
        }
      }
    },
  );

  await t.test('over its limit a client gets 429 with Retry-After', async (t) => {
    const limited = await newKey(service, 'write', { rateLimit: { requests: 2, windowSeconds: 86_400 } });
    const options = { method: 'POST', headers: { 'x-api-key': limited.key } };
    t.equal((await client(options)).status, 200);
    t.equal((await client(options)).status, 200);
    const reply = await passesNothing(t, backend, client(options));
    t.match(reply, { status: 429, headers: { 'x-latchkey-code': 'rate_limited' } });
    const seconds = Number(reply.headers['retry-after']);
    t.ok(seconds >= 1 && seconds <= 86_400, `Retry-After: ${seconds}`);
    t.match(reply.headers['ratelimit'], /^"key";r=0;t=\d+$/);
  });

  await t.test('Latchkey gets no body, cookie or query, on reused connections where possible', async (t) => {
    const calls: Array<{ url: string | undefined; headers: IncomingHttpHeaders }> = [];
    let connections = 0;
    const keep = ({ url, headers }: IncomingMessage) => void calls.push({ url, headers });
    const count = () => {
      connections += 1;
    };
    service.app.server.on('request', keep).on('connection', count);
    const body = randomBytes(900_000);
    const sha256 = createHash('sha256').update(body).digest('hex');
    for (const length of [{ 'content-length': String(body.length) }, { 'transfer-encoding': 'chunked' }]) {
      const headers = { 'x-api-key': writing.key, 'content-type': 'text/csv', cookie: 'a=b', ...length };
      t.equal((await client({ method: 'PUT', path: '/?q=1', headers, body })).status, 200);
      t.equal(latest(backend).sha256, sha256, 'the backend gets the body unchanged');
      t.equal(latest(backend).headers.cookie, 'a=b');
      const refused = { ...headers, 'x-api-key': reading.key };
      t.equal((await client({ method: 'PUT', headers: refused, body })).status, 403);
    }
    for (let round = 0; round < 20; round += 1) await client({ headers: { 'x-api-key': reading.key } });
    service.app.server.off('request', keep).off('connection', count);
    t.equal(calls.length, 24);
    for (const { url, headers } of calls) {
      t.notMatch(JSON.stringify([url, headers]), /q=1/);
      t.same(
        [headers['content-length'] ?? '0', headers['transfer-encoding'], headers.cookie],
        ['0', undefined, undefined],
      );
    }
    t.ok(connections <= connectionsAtMost, `${connections} connections for 24 calls`);
  });

  await t.test('a deleted key is rejected as soon as its delete is answered', async (t) => {
    for (let round = 0; round < 5; round += 1) {
      const { key, id } = await newKey(service, 'read');
      t.equal((await client({ headers: { 'x-api-key': key } })).status, 200);
      t.equal((await service.admin.delete(`/v1/keys/${id}?reason=unused`)).status, 200);
      t.equal((await passesNothing(t, backend, client({ headers: { 'x-api-key': key } }))).status, 401);
    }
  });

  await t.test('a gateway with an invalid token passes nothing', async (t) => {
    const misconfigured = await start(t, { latchkeyPort, backendPort: backend.port, token: reading.key });
    const reply = await passesNothing(t, backend, send(misconfigured.port, { headers: { 'x-api-key': reading.key } }));
    t.equal(reply.status, 503);
    t.match(service.logLines.join(''), /x-latchkey-token of 127\.0\.0\.1 is not the token of a verifier/);
  });

  await t.test('while Latchkey is silent nothing passes', async (t) => {
    const silent = await listenInSilence(t);
    const places: Array<[string, number]> = [
      ['no listener', await freePort()],
      ['no reply', silent],
    ];
    for (const [what, port] of places) {
      const separateGateway = await start(t, { latchkeyPort: port, backendPort: backend.port, token });
      const startedAt = Date.now();
      const reply = await passesNothing(
        t,
        backend,
        send(separateGateway.port, { headers: { 'x-api-key': reading.key } }),
      );
      t.ok([502, 503, 504].includes(reply.status), `${what}: ${reply.status}`);
      t.ok(Date.now() - startedAt < 20_000, `${what}: refused after ${Date.now() - startedAt} ms`);
      requireNoToken(t, separateGateway.process.output());
    }
    await service.app.close();
    const reply = await passesNothing(t, backend, client({ headers: { 'x-api-key': reading.key } }));
    t.ok([502, 503, 504].includes(reply.status), `stopped while in use: ${reply.status}`);
  });

  requireNoToken(t, gateway.process.output());
}

const methodForgeries: Array<Record<string, string>> = [
  {},
  { 'x-forwarded-method': 'GET' },
  { 'x-original-method': 'GET' },
  { 'x-forwarded-method': 'GET', 'x-original-method': 'GET' },
  { 'x-forwarded-method': 'GET', connection: 'close, x-forwarded-method' },
  { x_forwarded_method: 'GET', x_original_method: 'GET' },
  {
    'x-http-method-override': 'GET',
    'x-http-method': 'GET',
    'x-method-override': 'GET',
    x_http_method_override: 'GET',
  },
];

const identityNames = ['key-id', 'organization-id', 'partner-id', 'partner-external-id', 'permission'];

const identityForgeries: Array<Record<string, string>> = [
  Object.fromEntries(identityNames.map((name) => [`x-latchkey-${name}`, 'forged'])),
  Object.fromEntries(identityNames.map((name) => [`X_Latchkey_${name.replaceAll('-', '_')}`, 'forged'])),
  Object.fromEntries(identityNames.map((name) => [`x-LATCHKEY_${name}`, 'forged'])),
  { connection: `close, ${identityNames.map((name) => `X-Latchkey-${name}`).join(', ')}` },
];

const addressForgeries: Array<Record<string, string>> = [
  { 'x-forwarded-for': '127.0.0.2' },
  { 'x-forwarded-for': '127.0.0.2, 127.0.0.1' },
  { 'x-forwarded-for': '127.0.0.2', connection: 'close, x-forwarded-for' },
  { forwarded: 'for=127.0.0.2', 'x-real-ip': '127.0.0.2', 'x-client-ip': '127.0.0.2' },
];

interface NewKey {
  id: string;
  key: string;
  /** The headers that the backend must get. */
  identity: Record<string, string>;
}

/** A key of a new partner. */
async function newKey(service: TestService, permission: 'read' | 'write', limits: object = {}): Promise<NewKey> {
  const random = randomBytes(6).toString('hex');
  const externalId = `Müller, ${random}`;
  const input = { email: `${random}@p.example`, permissions: [permission], externalId };
  const { body: partner } = await service.admin.post('/v1/partners', input);
  const [{ id, key }] = partner.keys;
  await service.admin.patch(`/v1/keys/${id}`, limits);
  const identity = {
    'x-latchkey-key-id': id,
    'x-latchkey-organization-id': service.organizationId,
    'x-latchkey-partner-id': partner.id,
    'x-latchkey-partner-external-id': `M%C3%BCller%2C%20${random}`,
    'x-latchkey-permission': permission,
  };
  return { id, key, identity };
}

function latest(backend: Backend): Passed {
  const passed = backend.passed.at(-1);
  if (passed === undefined) throw new Error('nothing has reached the backend');
  return passed;
}

/** Returns the reply, and checks that the backend got no request. */
async function passesNothing<Reply>(t: Test, backend: Backend, direct: Promise<Reply>): Promise<Reply> {
  const before = backend.passed.length;
  const reply = await direct;
  t.equal(backend.passed.length, before, 'the backend gets no request');
  return reply;
}

/** Checks that the output has neither the client's key nor the gateway's token. */
function requireNoToken(t: Test, output: string): void {
  t.equal(/lk_[kv]_[0-9a-z]{26}_/.exec(output), null);
}
