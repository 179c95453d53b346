import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { createIssuerKeys, fetchKeys } from '../src/oidc/issuer-keys.ts';
import { type Json, startService } from './support/app.ts';
import { type Issuer, oidcOf, startIssuer } from './support/issuer.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

type Timings = NonNullable<Parameters<typeof oidcOf>[2]>['timings'];

async function start(t: Test, issuer: Issuer, timings: Timings = {}) {
  const logged: Json[] = [];
  const logger = {
    warn: (_: unknown, text?: string) => void logged.push(text),
    info: (text: Json) => void logged.push(text),
  };
  const organization = { claim: 'organization', ids: undefined };
  const options = { logger: logger as never, ...(timings === undefined ? {} : { timings }) };
  const service = await startService(t, { oidc: oidcOf(issuer, organization, options) });
  issuer.people.set('ada', { organization: service.organizationId, roles: ['latchkey-read'] });
  const list = async (token: string) => (await service.as(token).get('/v1/keys')).status;
  const login = async () => (await issuer.tokensOf('ada')).accessToken;
  return { ...service, list, login, logged };
}

t.test('keys are fetched once, and again when the issuer signs with a new key', async (t) => {
  const issuer = await startIssuer(t);
  const { list, login } = await start(t, issuer, { cooldownMs: 1 });
  const before = await login();
  t.same(await Promise.all(Array.from({ length: 20 }, () => list(before))), Array(20).fill(200));
  t.equal(issuer.keyFetches(), 1);
  await issuer.rotate();
  const after = await login();
  t.equal(await list(before), 200, 'the old key stays cached until the next fetch');
  t.same(await Promise.all(Array.from({ length: 20 }, () => list(after))), Array(20).fill(200));
  t.equal(issuer.keyFetches(), 2);
  t.equal(await list(before), 401, 'withdrawn keys are removed by the fetch');
});

t.test('unknown key ids cause at most one fetch per interval', async (t) => {
  const issuer = await startIssuer(t);
  const { list, login } = await start(t, issuer, { cooldownMs: 600 });
  const token = await login();
  const payload = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString());
  t.equal(await list(token), 200);
  const startedAt = Date.now();
  let attempts = 0;
  for (; Date.now() - startedAt < 1_500; attempts++) {
    t.equal(await list(await issuer.sign(payload, { kid: `invented-${attempts}` })), 401);
  }
  t.ok(attempts > 10, `${attempts} were tried`);
  t.ok(issuer.keyFetches() <= 1 + Math.ceil((Date.now() - startedAt) / 600), `${issuer.keyFetches()} fetches`);
  await issuer.rotate();
  const rotated = await login();
  await eventually(async () => (await list(rotated)) === 200);
});

t.test(
  'while the issuer is down, cached keys work, others give 503 instead of 401, and it recovers by itself',
  async (t) => {
    const issuer = await startIssuer(t);
    const { list, login, as, logged } = await start(t, issuer, { cooldownMs: 1, refreshMs: 100, retryMs: 50 });
    const token = await login();
    t.equal(await list(token), 200);
    await issuer.rotate();
    const unknown = await login();
    await issuer.goDown();
    await eventually(async () => {
      t.equal(await list(token), 200);
      return logged.length > 0;
    });
    t.match(logged, [/cannot be fetched\. Cached keys stay valid/]);
    const reply = await as(unknown).get('/v1/keys');
    t.match(reply, {
      status: 503,
      body: { code: 'unavailable', detail: /keys of the identity provider could not be fetched/ },
    });
    t.ok(Number(reply.headers['retry-after']) > 0);
    t.notOk(reply.headers['www-authenticate']);
    for (let attempt = 0; attempt < 5; attempt++) t.equal(await list(token), 200);
    t.equal(logged.length, 1, 'logged once, not at every attempt');
    await issuer.comeBack();
    await eventually(async () => (await list(unknown)) === 200);
    t.match(logged[1], /can be fetched again/);
  },
);

t.test("if the issuer was never reached, its tokens get 503 at once, and Latchkey's tokens work", async (t) => {
  const issuer = await startIssuer(t);
  issuer.people.set('ada', {});
  const token = (await issuer.tokensOf('ada')).accessToken;
  await issuer.goDown();
  const { list, admin, login } = await start(t, issuer, { retryMs: 300 });
  t.equal(await list(token), 503);
  t.equal((await admin.get('/v1/keys')).status, 200);
  await issuer.comeBack();
  const good = await login();
  await eventually(async () => (await list(good)) === 200);
});

t.test('keys that were not confirmed for long are no longer trusted', async (t) => {
  const issuer = await startIssuer(t);
  const { list, login } = await start(t, issuer, { refreshMs: 50, keptMs: 700, retryMs: 50, cooldownMs: 1 });
  const token = await login();
  await eventually(async () => (await list(token)) === 200);
  await issuer.goDown();
  await eventually(async () => (await list(token)) === 503);
  await issuer.comeBack();
  await eventually(async () => (await list(token)) === 200);
});

t.test('requests wait for a silent issuer together, and not for long', async (t) => {
  const issuer = await startIssuer(t);
  const silent = createServer(() => undefined).listen(0, '127.0.0.1');
  t.teardown(() => {
    silent.closeAllConnections();
    silent.close();
  });
  await eventually(async () => silent.listening);
  const url = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`;
  const { list } = await start(t, { ...issuer, url }, { timeoutMs: 400, retryMs: 60_000 });
  const token = await issuer.sign({ iss: url, sub: 'ada' });
  const startedAt = Date.now();
  t.same(await Promise.all(Array.from({ length: 10 }, () => list(token))), Array(10).fill(503));
  t.ok(Date.now() - startedAt < 5_000);
  const again = Date.now();
  t.equal(await list(token), 503);
  t.ok(Date.now() - again < 300, 'then the issuer is not called for a while');
});

t.test('an unusable key is treated as not published', async (t) => {
  const weak = generateKeyPairSync('rsa', { modulusLength: 1_024 });
  const strong = generateKeyPairSync('rsa', { modulusLength: 2_048 });
  const jwkOf = (key: KeyObject, kid: string) => ({ ...key.export({ format: 'jwk' }), kid, alg: 'RS256' });
  const good = jwkOf(strong.publicKey, 'good');
  const keys = [
    null,
    'a text',
    { kty: 'oct', k: 'c2VjcmV0', kid: 'secret' },
    { kty: 'RSA', kid: 'empty', alg: 'RS256' },
    { kty: 'RSA', kid: 'damaged', alg: 'RS256', n: '!!', e: 'AQAB' },
    { kty: 'EC', crv: 'P-256', x: 'AA', y: 'AA', kid: 'off-curve' },
    jwkOf(weak.publicKey, 'weak'),
    jwkOf(strong.privateKey, 'private'),
    good,
  ];
  let issuer = '';
  const server = createServer((request, response) => {
    response.end(JSON.stringify(request.url === '/keys' ? { keys } : { issuer, jwks_uri: `${issuer}/keys` }));
  }).listen(0, '127.0.0.1');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  await eventually(async () => server.listening);
  issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  t.same(await fetchKeys(issuer), { keys: [good] });

  const logger = { warn: () => undefined, info: () => undefined };
  const issuerKeys = createIssuerKeys({ issuer, logger });
  const find = async (kid: string) => issuerKeys.find({ alg: 'RS256', kid }, { payload: '', signature: '' });
  await t.rejects(find('weak'), { code: 'ERR_JWKS_NO_MATCHING_KEY' });
  await t.rejects(find('private'), { code: 'ERR_JWKS_NO_MATCHING_KEY' });
  await t.rejects(find('damaged'), { code: 'ERR_JWKS_NO_MATCHING_KEY' });
  t.ok(await find('good'));
});

t.test('discovery must be of this issuer, valid, and lead to a trusted address', async (t) => {
  let answer: (path: string) => { status?: number; body?: string; location?: string } = () => ({});
  const server = createServer((request, response) => {
    const { status = 200, body = '', location } = answer(request.url ?? '');
    response.writeHead(status, location === undefined ? {} : { location }).end(body);
  }).listen(0, '127.0.0.1');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  await eventually(async () => server.listening);
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}/realms/company`;
  const discoveryOf = (changes: object) => JSON.stringify({ issuer, jwks_uri: `${issuer}/keys`, ...changes });
  const paths: string[] = [];
  const serve = (discovery: string, keys = '{"keys":[]}') => {
    answer = (path) => {
      paths.push(path);
      return { body: path.includes('well-known') ? discovery : keys };
    };
  };
  serve(discoveryOf({}));
  t.same(await fetchKeys(issuer), { keys: [] });
  t.same(paths, ['/realms/company/.well-known/openid-configuration', '/realms/company/keys']);
  const invalid: Array<[what: string, discovery: string, keys: string | undefined, message: RegExp]> = [
    ['of another issuer', discoveryOf({ issuer: 'https://evil.example' }), undefined, /another issuer/],
    ['without jwks_uri', discoveryOf({ jwks_uri: undefined }), undefined, /no trustworthy jwks_uri/],
    ['keys over plain http', discoveryOf({ jwks_uri: 'http://keys.example/' }), undefined, /no trustworthy jwks_uri/],
    ['keys in a file', discoveryOf({ jwks_uri: 'file:///etc/passwd' }), undefined, /no trustworthy jwks_uri/],
    ['no JSON', 'hello', undefined, /JSON/],
    ['no object', 'null', undefined, /not a JSON object/],
    ['keys that are not a list', discoveryOf({}), '{"keys":{}}', /no keys/],
    ['a reply that is too long', discoveryOf({}), `{"keys":["${'x'.repeat(300_000)}"]}`, /more than 262144 characters/],
  ];
  for (const [what, discovery, keys, message] of invalid) {
    serve(discovery, keys);
    await t.rejects(fetchKeys(issuer), { message }, what);
  }
  answer = () => ({ status: 500 });
  await t.rejects(fetchKeys(issuer), /answered 500/);
  answer = (path) =>
    path === '/elsewhere'
      ? { body: discoveryOf({}) }
      : path.includes('well-known')
        ? { status: 302, location: '/elsewhere' }
        : { body: '{"keys":[]}' };
  await t.rejects(fetchKeys(issuer), 'a redirect is not followed');
});
