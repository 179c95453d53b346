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
  const said: Json[] = [];
  const logger = {
    warn: (_: unknown, text?: string) => void said.push(text),
    info: (text: Json) => void said.push(text),
  };
  const organization = { claim: 'organization', ids: undefined };
  const options = { logger: logger as never, ...(timings === undefined ? {} : { timings }) };
  const service = await startService(t, { oidc: oidcOf(issuer, organization, options) });
  issuer.people.set('ada', { organization: service.organizationId, roles: ['latchkey-read'] });
  const ask = async (token: string) => (await service.as(token).get('/v1/keys')).status;
  const login = async () => (await issuer.tokensOf('ada')).accessToken;
  return { ...service, ask, login, said };
}

t.test('keys are fetched once, and again when the issuer signs with another', async (t) => {
  const issuer = await startIssuer(t);
  const { ask, login } = await start(t, issuer, { cooldownMs: 1 });
  const before = await login();
  t.same(await Promise.all(Array.from({ length: 20 }, () => ask(before))), Array(20).fill(200));
  t.equal(issuer.keyFetches(), 1);
  await issuer.rotate();
  const after = await login();
  t.equal(await ask(before), 200, 'the old key stays cached until the next fetch');
  t.same(await Promise.all(Array.from({ length: 20 }, () => ask(after))), Array(20).fill(200));
  t.equal(issuer.keyFetches(), 2);
  t.equal(await ask(before), 401, 'and what the issuer has withdrawn goes with it');
});

t.test('invented key ids do not cause more than one fetch per interval', async (t) => {
  const issuer = await startIssuer(t);
  const { ask, login } = await start(t, issuer, { cooldownMs: 600 });
  const token = await login();
  const payload = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString());
  t.equal(await ask(token), 200);
  const startedAt = Date.now();
  let asked = 0;
  for (; Date.now() - startedAt < 1_500; asked++) {
    t.equal(await ask(await issuer.sign(payload, { kid: `invented-${asked}` })), 401);
  }
  t.ok(asked > 10, `${asked} were tried`);
  t.ok(issuer.keyFetches() <= 1 + Math.ceil((Date.now() - startedAt) / 600), `${issuer.keyFetches()} fetches`);
  await issuer.rotate();
  const rotated = await login();
  await eventually(async () => (await ask(rotated)) === 200);
});

t.test('the issuer is down: known keys go on, others are 503 and not 401, and it comes back by itself', async (t) => {
  const issuer = await startIssuer(t);
  const { ask, login, as, said } = await start(t, issuer, { cooldownMs: 1, refreshMs: 100, retryMs: 50 });
  const token = await login();
  t.equal(await ask(token), 200);
  await issuer.rotate();
  const unknown = await login();
  await issuer.goDown();
  await eventually(async () => {
    t.equal(await ask(token), 200);
    return said.length > 0;
  });
  t.match(said, [/cannot be fetched\. Cached keys stay valid/]);
  const reply = await as(unknown).get('/v1/keys');
  t.match(reply, {
    status: 503,
    body: { code: 'unavailable', detail: /keys of the identity provider could not be fetched/ },
  });
  t.ok(Number(reply.headers['retry-after']) > 0);
  t.notOk(reply.headers['www-authenticate']);
  for (let attempt = 0; attempt < 5; attempt++) t.equal(await ask(token), 200);
  t.equal(said.length, 1, 'said once, not with every attempt');
  await issuer.comeBack();
  await eventually(async () => (await ask(unknown)) === 200);
  t.match(said[1], /can be fetched again/);
});

t.test('never heard of the issuer: 503 at once, and our own tokens do not care', async (t) => {
  const issuer = await startIssuer(t);
  issuer.people.set('ada', {});
  const token = (await issuer.tokensOf('ada')).accessToken;
  await issuer.goDown();
  const { ask, admin, login } = await start(t, issuer, { retryMs: 300 });
  t.equal(await ask(token), 503);
  t.equal((await admin.get('/v1/keys')).status, 200);
  await issuer.comeBack();
  const good = await login();
  await eventually(async () => (await ask(good)) === 200);
});

t.test('keys that nobody has confirmed for long are not trusted any more', async (t) => {
  const issuer = await startIssuer(t);
  const { ask, login } = await start(t, issuer, { refreshMs: 50, keptMs: 700, retryMs: 50, cooldownMs: 1 });
  const token = await login();
  await eventually(async () => (await ask(token)) === 200);
  await issuer.goDown();
  await eventually(async () => (await ask(token)) === 503);
  await issuer.comeBack();
  await eventually(async () => (await ask(token)) === 200);
});

t.test('an issuer that is silent is not waited for long, and by all together', async (t) => {
  const issuer = await startIssuer(t);
  const silent = createServer(() => undefined).listen(0, '127.0.0.1');
  t.teardown(() => {
    silent.closeAllConnections();
    silent.close();
  });
  await eventually(async () => silent.listening);
  const url = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`;
  const { ask } = await start(t, { ...issuer, url }, { timeoutMs: 400, retryMs: 60_000 });
  const token = await issuer.sign({ iss: url, sub: 'ada' });
  const startedAt = Date.now();
  t.same(await Promise.all(Array.from({ length: 10 }, () => ask(token))), Array(10).fill(503));
  t.ok(Date.now() - startedAt < 5_000);
  const again = Date.now();
  t.equal(await ask(token), 503);
  t.ok(Date.now() - again < 300, 'and then it is left alone for a while');
});

t.test('a key that nobody could check with is as if it were not published', async (t) => {
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
  const found = createIssuerKeys({ issuer, logger });
  const find = async (kid: string) => found.find({ alg: 'RS256', kid }, { payload: '', signature: '' });
  await t.rejects(find('weak'), { code: 'ERR_JWKS_NO_MATCHING_KEY' });
  await t.rejects(find('private'), { code: 'ERR_JWKS_NO_MATCHING_KEY' });
  await t.rejects(find('damaged'), { code: 'ERR_JWKS_NO_MATCHING_KEY' });
  t.ok(await find('good'));
});

t.test('what is found must be of this issuer, be sane, and lead where it can be trusted', async (t) => {
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
  const discovered = (changes: object) => JSON.stringify({ issuer, jwks_uri: `${issuer}/keys`, ...changes });
  const paths: string[] = [];
  const serve = (discovery: string, keys = '{"keys":[]}') => {
    answer = (path) => {
      paths.push(path);
      return { body: path.includes('well-known') ? discovery : keys };
    };
  };
  serve(discovered({}));
  t.same(await fetchKeys(issuer), { keys: [] });
  t.same(paths, ['/realms/company/.well-known/openid-configuration', '/realms/company/keys']);
  const wrong: Array<[what: string, discovery: string, keys: string | undefined, message: RegExp]> = [
    ['of another', discovered({ issuer: 'https://evil.example' }), undefined, /another issuer/],
    ['no keys named', discovered({ jwks_uri: undefined }), undefined, /no trustworthy jwks_uri/],
    ['keys over plain http', discovered({ jwks_uri: 'http://keys.example/' }), undefined, /no trustworthy jwks_uri/],
    ['keys in a file', discovered({ jwks_uri: 'file:///etc/passwd' }), undefined, /no trustworthy jwks_uri/],
    ['no JSON', 'hello', undefined, /JSON/],
    ['no object', 'null', undefined, /not a JSON object/],
    ['no list', discovered({}), '{"keys":{}}', /no keys/],
    ['without end', discovered({}), `{"keys":["${'x'.repeat(300_000)}"]}`, /more than 262144 characters/],
  ];
  for (const [what, discovery, keys, message] of wrong) {
    serve(discovery, keys);
    await t.rejects(fetchKeys(issuer), { message }, what);
  }
  answer = () => ({ status: 500 });
  await t.rejects(fetchKeys(issuer), /answered 500/);
  answer = (path) =>
    path === '/elsewhere'
      ? { body: discovered({}) }
      : path.includes('well-known')
        ? { status: 302, location: '/elsewhere' }
        : { body: '{"keys":[]}' };
  await t.rejects(fetchKeys(issuer), 'a redirect is not followed');
});
