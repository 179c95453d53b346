import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import type { Test } from 'tap';
import { createGithubKeys, type GithubKeysOptions } from '../src/leaks/github-keys.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { listenHttp } from './support/listeners.ts';
import { eventually, request } from './support/process.ts';
import { serve } from './support/served.ts';
import { t } from './support/tap.ts';

// A server in the test's process lists public keys as GitHub does, and signs bodies with its private keys.

interface SigningKey {
  identifier: string;
  privateKey: KeyObject;
  listed: Json;
}

function createKey(identifier: string, namedCurve = 'P-256'): SigningKey {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve });
  const key = publicKey.export({ type: 'spki', format: 'pem' });
  return { identifier, privateKey, listed: { key_identifier: identifier, key, is_current: true } };
}

async function startGithub(t: Test) {
  let listed: Json[] = [];
  let fetches = 0;
  let isDown = false;
  const server = await listenHttp(t, (response) => {
    fetches += 1;
    if (isDown) {
      response.writeHead(503).end();
      return;
    }
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify({ public_keys: listed }));
  });
  return {
    url: `http://127.0.0.1:${server.port}/meta/public_keys/secret_scanning`,
    list(...keys: SigningKey[]) {
      listed = keys.map((key) => key.listed);
    },
    listRaw(entries: Json[]) {
      listed = entries;
    },
    fetches: () => fetches,
    goDown(down: boolean) {
      isDown = down;
    },
  };
}

const silent = { warn: () => undefined, info: () => undefined };
const quick = { cooldownMs: 0, retryMs: 0, timeoutMs: 20_000 };

const githubKeys = (url: string, timings: GithubKeysOptions['timings'] = quick) =>
  createGithubKeys({ url, logger: silent, timings });

function headersFor(body: string, { identifier, privateKey }: SigningKey): Record<string, string> {
  return {
    'content-type': 'application/json',
    'github-public-key-identifier': identifier,
    'github-public-key-signature': sign('sha256', Buffer.from(body), privateKey).toString('base64'),
  };
}

async function send({ app }: Pick<TestService, 'app'>, payload: string, headers: Record<string, string>) {
  const response = await app.inject({ method: 'POST', url: '/v1/leaks/github', payload, headers });
  return { status: response.statusCode, body: response.json() };
}

const sendSigned = (service: TestService, matches: Json, key: SigningKey) => {
  const body = JSON.stringify(matches);
  return send(service, body, headersFor(body, key));
};

const type = 'latchkey_api_key';
const forbidden = { status: 403, body: { code: 'forbidden' } };

async function reportsIn({ admin }: TestService): Promise<Json[]> {
  const { body } = await admin.get('/v1/history?limit=200&action=key.leak_reported');
  return body.data.reverse();
}

t.test('signed matches are answered in order, recorded, and acted upon once however often they arrive', async (t) => {
  const github = await startGithub(t);
  const key = createKey('first');
  github.list(key);
  const service = await startService(t, { githubKeys: githubKeys(github.url) });
  const { admin, verifier } = service;
  await admin.patch('/v1/organization', { leakResponse: 'revoke' });
  const { body: live } = await admin.post('/v1/keys', {});
  const { body: deleted } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${deleted.id}`);
  const url = 'https://github.com/octocat/Hello-World/blob/main/foo.txt';
  const matches = [
    { token: live.key, type, url, source: 'content' },
    { token: `${live.key.slice(0, -1)}!`, type, url, source: 'content' },
    { token: deleted.key, type, url: '', source: 'commit' },
    { token: verifier.token, type: 'latchkey_access_token', url, source: 'Npm', more: true },
    { token: live.key, type, url, source: 'content' },
  ];
  const expected = ['true_positive', 'false_positive', 'true_positive', 'true_positive', 'true_positive'].map(
    (label, index) => ({ token_raw: matches[index]?.token, token_type: matches[index]?.type, label }),
  );
  for (let sent = 0; sent < 3; sent++) t.same(await sendSigned(service, matches, key), { status: 200, body: expected });
  const reports = await reportsIn(service);
  t.same(
    reports.map(({ keyId, details }) => [keyId, details]).toSorted(),
    [
      [live.id, { source: 'GitHub secret scanning: content', url, note: null, action: 'revoke' }],
      [deleted.id, { source: 'GitHub secret scanning: commit', url: null, note: null, action: 'revoke' }],
    ].toSorted(),
  );
  t.match(reports[0], { actor: { type: 'system', id: 'github_secret_scanning', name: 'GitHub secret scanning' } });
  t.equal((await verifier.post('/v1/verify', { key: live.key, permission: 'read' })).body.code, 'deleted');
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('a body that GitHub did not sign as it is changes nothing', async (t) => {
  const github = await startGithub(t);
  const [key, other] = [createKey('first'), createKey('first')];
  github.list(key);
  const service = await startService(t, { githubKeys: githubKeys(github.url) });
  const { body: live } = await service.admin.post('/v1/keys', {});
  const body = JSON.stringify([{ token: live.key, type, url: '', source: 'content' }]);
  const signed = headersFor(body, key);
  for (const [what, sent, headers] of [
    ['another private key', body, headersFor(body, other)],
    ['a changed body', body.replace('content', 'commit'), signed],
    ['other spaces in the body', `${body} `, signed],
    ['an unknown identifier', body, { ...signed, 'github-public-key-identifier': 'second' }],
    ['no identifier', body, { ...signed, 'github-public-key-identifier': '' }],
    ['no signature', body, { ...signed, 'github-public-key-signature': '' }],
    ['no base64', body, { ...signed, 'github-public-key-signature': '!' }],
    ['no headers', body, { 'content-type': 'application/json' }],
  ] as const) {
    t.match(await send(service, sent, headers), forbidden, what);
  }
  t.same(await reportsIn(service), []);
  t.equal((await send(service, body, signed)).status, 200);
  t.equal((await reportsIn(service)).length, 1);
});

t.test("the signed sample request of GitHub's documentation is accepted", async (t) => {
  const github = await startGithub(t);
  const identifier = 'bcb53661c06b4728e59d897fb6165d5c9cda0fd9cdf9d09ead458168deb7518c';
  const key =
    '-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEYAGMWO8XgCamYKMJS6jc/qgvSlAd\n' +
    'AjPuDPRcXU22YxgBrz+zoN19MzuRyW87qEt9/AmtoNP5GrobzUvQSyJFVw==\n-----END PUBLIC KEY-----\n';
  github.listRaw([{ key_identifier: identifier, key, is_current: true }]);
  const service = await startService(t, { githubKeys: githubKeys(github.url) });
  const body =
    '[{"source":"commit","token":"some_token","type":"some_type","url":"https://example.com/base-repo-url/"}]';
  const reply = await send(service, body, {
    'content-type': 'application/json',
    'github-public-key-identifier': identifier,
    'github-public-key-signature':
      'MEQCIQDaMKqrGnE27S0kgMrEK0eYBmyG0LeZismAEz/BgZyt7AIfXt9fErtRS4XaeSt/AO1RtBY66YcAdjxji410VQV4xg==',
  });
  const label = 'false_positive';
  t.same(reply, { status: 200, body: [{ token_raw: 'some_token', token_type: 'some_type', label }] });
});

t.test(
  'after a rotation the new key is found at once, and the old one is rejected once it is not listed',
  async (t) => {
    const github = await startGithub(t);
    const [first, second] = [createKey('first'), createKey('second')];
    github.list(first);
    const keys = githubKeys(github.url, { ...quick, refreshMs: 0 });
    const service = await startService(t, { githubKeys: keys });
    t.equal((await sendSigned(service, [], first)).status, 200);
    github.list(first, second);
    t.equal((await sendSigned(service, [], second)).status, 200);
    t.equal((await sendSigned(service, [], first)).status, 200, 'both are listed');
    github.list(second);
    await eventually(async () => (await sendSigned(service, [], first)).status === 403, 5_000);
    t.equal((await sendSigned(service, [], second)).status, 200);
  },
);

t.test('unknown identifiers cause one fetch in a while, however many arrive at once', async (t) => {
  const github = await startGithub(t);
  const key = createKey('first');
  github.list(key);
  const service = await startService(t, { githubKeys: githubKeys(github.url, { timeoutMs: 20_000 }) });
  t.equal((await sendSigned(service, [], key)).status, 200);
  t.equal(github.fetches(), 1);
  const unknown = await Promise.all(
    Array.from({ length: 10 }, (_, index) => sendSigned(service, [], createKey(`unknown-${index}`))),
  );
  for (const reply of unknown) t.match(reply, forbidden);
  t.equal(github.fetches(), 1);
});

t.test('while the keys cannot be fetched, known keys work for a day and unknown ones are 503', async (t) => {
  const github = await startGithub(t);
  const [first, second] = [createKey('first'), createKey('second')];
  github.list(first, second);
  github.goDown(true);
  const never = await startService(t, { githubKeys: githubKeys(github.url) });
  t.match(await sendSigned(never, [], first), { status: 503, body: { code: 'unavailable' } });
  github.goDown(false);
  t.equal((await sendSigned(never, [], first)).status, 200, 'it comes back by itself');

  github.list(first);
  const service = await startService(t, { githubKeys: githubKeys(github.url, { ...quick, refreshMs: 0 }) });
  t.equal((await sendSigned(service, [], first)).status, 200);
  github.goDown(true);
  t.equal((await sendSigned(service, [], first)).status, 200);
  t.match(await sendSigned(service, [], second), { status: 503, body: { code: 'unavailable' } });

  const forgetful = githubKeys(github.url, { ...quick, keptMs: 0 });
  github.goDown(false);
  t.ok(await forgetful.find('first'));
  github.goDown(true);
  await t.rejects(forgetful.find('first'), { code: 'unavailable' });
});

t.test('only keys of ECDSA P-256 are used, and a list without any is a failure', async (t) => {
  const github = await startGithub(t);
  const key = createKey('first');
  const otherCurve = createKey('other', 'P-384');
  const privatePem = key.privateKey.export({ type: 'pkcs8', format: 'pem' });
  const odd = [null, 5, {}, { key_identifier: 5, key: key.listed.key }, { key_identifier: 'private', key: privatePem }];
  github.listRaw([...odd, { key_identifier: 'text', key: 'BEGIN PUBLIC KEY' }, otherCurve.listed, key.listed]);
  const keys = githubKeys(github.url);
  t.ok(await keys.find('first'));
  for (const identifier of ['other', 'private', 'text', 'none']) t.equal(await keys.find(identifier), undefined);
  github.listRaw(odd);
  await t.rejects(keys.find('none'), { code: 'unavailable' });
});

t.test('a signed body is bounded, and what is stored of it is clean', async (t) => {
  const github = await startGithub(t);
  const key = createKey('first');
  github.list(key);
  const service = await startService(t, { githubKeys: githubKeys(github.url) });
  const { body: live } = await service.admin.post('/v1/keys', {});
  const match = (url: string) => ({ token: live.key, type, url, source: 'commit' });
  for (const [matches, status] of [
    [{ token: live.key }, 400],
    [[{ type }], 400],
    [[{ token: 5, type }], 400],
    [Array.from({ length: 1_001 }, () => ({ token: 'x' })), 400],
    [[match('x'.repeat(262_144))], 413],
  ] as const) {
    t.equal((await sendSigned(service, matches, key)).status, status);
  }
  t.equal((await send(service, 'no json', headersFor('no json', key))).status, 400);
  t.same(await reportsIn(service), []);
  const many = Array.from({ length: 1_000 }, () => ({ token: 'x', type }));
  t.equal((await sendSigned(service, many, key)).body.length, 1_000);

  const urls = [`https://g.example/?k=${live.key}&x=1`, `https://g.example/a\u202eb\u0000c`, 'y'.repeat(5_000)];
  t.equal((await sendSigned(service, urls.map(match), key)).status, 200);
  const stored = (await reportsIn(service)).map(({ details }) => details.url);
  t.same(stored.toSorted(), ['https://g.example/?k=[redacted]&x=1', 'https://g.example/a b c', 'y'.repeat(2_048)]);
});

t.test('without GITHUB_KEYS_URL the route does not exist', async (t) => {
  const service = await startService(t);
  const key = createKey('first');
  t.match(await sendSigned(service, [], key), { status: 404, body: { code: 'not_found' } });
});

t.test('bodies that are not yet known to be signed are limited by address', async (t) => {
  const github = await startGithub(t);
  const key = createKey('first');
  github.list(key);
  const service = await startService(t, { githubKeys: githubKeys(github.url), publicLimit: 5 });
  const statuses = await Promise.all(
    Array.from({ length: 8 }, async () => (await sendSigned(service, [], key)).status),
  );
  t.same(statuses.toSorted(), [200, 200, 200, 200, 200, 429, 429, 429]);
});

t.test('a process with GITHUB_KEYS_URL fetches the keys at its start and answers on its port', async (t) => {
  const github = await startGithub(t);
  const key = createKey('first');
  github.list(key);
  const { url, tokens } = await serve(t, { GITHUB_KEYS_URL: github.url });
  await eventually(async () => github.fetches() === 1, 5_000);
  const created = await request(`${url}/v1/keys`, { method: 'POST', token: tokens['adminToken'] ?? '', body: {} });
  const token = created.body.key;
  const body = JSON.stringify([{ token, type, url: '', source: 'commit' }]);
  const reply = await fetch(`${url}/v1/leaks/github`, { method: 'POST', headers: headersFor(body, key), body });
  t.same(await reply.json(), [{ token_raw: token, token_type: type, label: 'true_positive' }]);
  t.equal(github.fetches(), 1);
});
