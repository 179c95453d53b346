import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Test } from 'tap';
import { purgeDeletedKeys } from '../src/keys/purge-job.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { dbDump, dbQuery } from './support/database.ts';
import { startBackend, startClient, startListening } from './support/hook.ts';
import { foreignToken, sha256Of, tracesOf } from './support/imports.ts';
import { keyringOf } from './support/keyrings.ts';
import { eventually, run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { runRekey } from './support/rekey.ts';
import { t } from './support/tap.ts';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

async function addPartner({ admin }: Pick<TestService, 'admin'>): Promise<string> {
  const email = `p${Math.random()}@p.example`;
  const { body: partner } = await admin.post('/v1/partners', { email, permissions: ['read'] });
  await admin.delete(`/v1/keys/${partner.keys[0].id}`);
  return partner.id;
}

/** Imports one token into a row of its own. */
async function importOne(service: TestService, entry: object): Promise<Json> {
  const reply = await service.admin.post('/v1/keys/import', {
    entries: [{ partnerId: await addPartner(service), ...entry }],
  });
  if (reply.status !== 201) throw new Error(JSON.stringify(reply.body));
  return reply.body.data[0];
}

const codeOf = async (client: Client, key: string, headers = {}): Promise<string> =>
  (await client.post('/v1/verify', { key, permission: 'read' }, headers)).body.code;

/** A second replica: the same database and keyring, and a verifier of the first one's organization. */
async function secondOf(t: Test, first: TestService, keyring = first.keyring) {
  const second = await startService(t, { urls: first.urls, keyring });
  await eventually(async () => second.verification.feed.isLive() && first.verification.feed.isLive());
  return { ...second, admin: second.as(first.admin.token), verifier: second.as(first.verifier.token) };
}

t.test('an imported key verifies everywhere that a created one does', async (t) => {
  const service = await startListening(t);
  const { admin, verifier, app, url } = service;
  const token = foreignToken();
  const key = await importOne(service, { plaintext: token, scopes: ['invoices:read'], metadata: { plan: 'old' } });
  t.match((await verifier.post('/v1/verify', { key: token, permission: 'read' })).body, {
    valid: true,
    keyId: key.id,
    scopes: ['invoices:read'],
    metadata: { plan: 'old' },
    rateLimit: { policy: 'owner' },
  });
  const entry = { permission: 'read' };
  const { body: batch } = await verifier.post('/v1/verify/batch', {
    entries: [
      { ...entry, key: token },
      { ...entry, key: foreignToken() },
      { ...entry, key: '' },
    ],
  });
  t.match(batch.data, [{ code: 'valid', keyId: key.id }, { code: 'not_found' }, { code: 'malformed' }]);
  const gateway = { 'x-latchkey-token': verifier.token, 'x-forwarded-method': 'GET' };
  for (const [name, headers, query] of [
    ['Authorization', { authorization: `Bearer ${token}` }, ''],
    ['X-API-Key', { 'x-api-key': token }, ''],
    ['another header', { 'x-old-key': token }, '?keyHeader=X-Old-Key'],
  ] as const) {
    const { statusCode, headers: identity } = await app.inject({
      url: `/v1/authorize${query}`,
      headers: { ...gateway, ...headers },
    });
    t.match({ statusCode, identity }, { statusCode: 200, identity: { 'x-latchkey-key-id': key.id } }, name);
  }
  const introspected = await app.inject({
    method: 'POST',
    url: '/v1/introspect',
    headers: { 'content-type': 'application/x-www-form-urlencoded', authorization: `Bearer ${verifier.token}` },
    payload: `token=${encodeURIComponent(token)}`,
  });
  t.match(introspected.json(), { active: true, sub: key.id, scope: 'read invoices:read' });
  for (const headers of [{}, { authorization: '', 'x-api-key': token }]) {
    const self = await service.as(token).get('/v1/self', headers.authorization === '' ? headers : {});
    if (headers.authorization === undefined) t.match(self, { status: 200, body: { kind: 'api_key', id: key.id } });
  }
  t.match(await service.as(foreignToken()).get('/v1/self'), { status: 401, body: { code: 'unauthorized' } });
  t.match(await service.as(token).get('/v1/keys'), { status: 403 }, 'it opens no management route');

  const access = { url, token: verifier.token };
  const client = await startClient(t, access);
  t.equal((await client.verify({ key: token, permission: 'read' })).code, 'valid');
  t.match(client.verify({ key: token, permission: 'read' }), { code: 'valid' }, 'and then from memory');
  t.equal((await client.verify({ key: foreignToken(), permission: 'read' })).code, 'not_found');
  t.match(client.verify({ key: 'é'.repeat(20), permission: 'read' }), { code: 'malformed' });
  t.match(client.verify({ key: 'x'.repeat(513), permission: 'read' }), { code: 'malformed' });
  const backend = await startBackend(t, access);
  t.equal(await backend.status(token), 200);
  t.equal(await backend.status(foreignToken()), 401);
  await eventually(async () => (await admin.get(`/v1/keys/${key.id}`)).body.lastUsedAt !== null, 15_000);

  await admin.delete(`/v1/keys/${key.id}`);
  await eventually(async () => (await backend.status(token)) === 401);
});

t.test('the Python client verifies imported keys, too', { skip: unlessInstalled('python3') }, async (t) => {
  const service = await startListening(t);
  const token = `${foreignToken()}-.~!"\\ x`;
  await importOne(service, { plaintext: token });
  const script = `
import os, sys
sys.path.insert(0, "clients/python")
from latchkey_client import LatchkeyClient
with LatchkeyClient(os.environ["LATCHKEY_URL"], os.environ["LATCHKEY_TOKEN"]) as client:
    print(",".join(client.verify(key, "read").code for key in (os.environ["KEY"], "acme_live_unknown_0001", "x" * 513, "")))
`;
  const env = {
    LATCHKEY_URL: service.url,
    LATCHKEY_TOKEN: service.verifier.token,
    KEY: token,
    PYTHONDONTWRITEBYTECODE: '1',
  };
  const python = run(t, 'python3', ['-c', script], { env });
  t.equal((await python.exited).code, 0, python.output());
  t.equal(python.stdout().trim(), 'valid,not_found,malformed,malformed');
});

t.test('where there are no imported keys, other texts are malformed and cost no query', async (t) => {
  const service = await startService(t);
  const { verifier, client, verification, operator, admin, as } = service;
  await eventually(async () => verification.feed.isLive());
  t.equal(await codeOf(verifier, foreignToken()), 'malformed');
  await as(foreignToken()).get('/v1/self');
  let queries = 0;
  client.pool.on('acquire', () => {
    queries += 1;
  });
  for (let round = 0; round < 200; round++) t.equal(await codeOf(verifier, foreignToken()), 'malformed');
  t.match(await as(foreignToken()).get('/v1/self'), { status: 401, body: { code: 'token_malformed' } });
  t.equal(queries, 0);

  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  const token = foreignToken();
  const { body } = await operator.post('/v1/keys/import', { entries: [{ plaintext: token }] }, inOther);
  t.equal(body.data.length, 1);
  t.equal(await codeOf(verifier, token), 'malformed', "another organization's keys change nothing");
  const everywhere = { role: 'verifier', scopes: ['read'], name: 'For all' };
  const forAll = as((await operator.post('/v1/access-tokens', everywhere)).body.token);
  t.equal(await codeOf(forAll, token), 'valid', 'a verifier of the installation finds it');
  t.equal(await codeOf(forAll, foreignToken()), 'not_found');
  await importOne(service, { sha256: sha256Of(foreignToken()) });
  t.equal(await codeOf(verifier, token), 'not_found', 'a key of another organization');
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('an import acts on every replica', async (t) => {
  const service = await startService(t);
  const { verifier: there, verification, admin: adminThere } = await secondOf(t, service);
  const { verifier: here } = service;
  const [first, second] = [foreignToken(), foreignToken()];
  for (const verifier of [here, there]) t.equal(await codeOf(verifier, first), 'malformed');
  await importOne(service, { plaintext: first });
  t.equal(await codeOf(here, first), 'valid', 'at once where it was imported');
  await eventually(async () => (await codeOf(there, first)) === 'valid');

  for (const verifier of [here, there]) t.equal(await codeOf(verifier, second), 'not_found');
  const key = await importOne(service, { plaintext: second });
  t.equal(await codeOf(here, second), 'valid', 'also if it was unknown a moment before');
  t.equal(await codeOf(there, second, { 'cache-control': 'no-cache' }), 'valid', 'no-cache reads the database');
  const startedAtMs = performance.now();
  await eventually(async () => (await codeOf(there, second)) === 'valid');
  t.ok(performance.now() - startedAtMs < 3_000, 'elsewhere within about a second');

  t.equal(await codeOf(there, second), 'valid');
  await adminThere.delete(`/v1/keys/${key.id}`);
  t.equal(await codeOf(there, second), 'deleted');
  await eventually(async () => (await codeOf(here, second)) === 'deleted');
  t.ok(verification.records.importedPointers.lookups.hit > 0);
});

t.test('deleted, restored, suspended, compromised, purged: an imported key does what a created one does', async (t) => {
  const service = await startService(t);
  const { admin, verifier, urls, client, keyring, clock, later, verification } = service;
  const token = foreignToken();
  const key = await importOne(service, { plaintext: token });
  const path = `/v1/keys/${key.id}`;
  await admin.post(`${path}/suspend`);
  t.equal(await codeOf(verifier, token), 'suspended');
  await admin.post(`${path}/resume`);
  await admin.patch(path, { name: 'Renamed', allowedIps: ['203.0.113.0/24'] });
  t.equal(await codeOf(verifier, token), 'ip_not_allowed');
  await admin.patch(path, { allowedIps: [] });
  await admin.delete(path);
  t.equal(await codeOf(verifier, token), 'deleted');
  await eventually(async () => {
    const { body } = await admin.get(`${path}/history?limit=1`);
    return body.data[0].action === 'key.used_after_deletion';
  }, 15_000);
  t.match(await admin.post('/v1/keys/import', { entries: [{ plaintext: token }] }), {
    status: 409,
    body: { code: 'key_exists', keyId: key.id },
  });
  t.match(await admin.post(`${path}/restore`), { status: 200, body: { origin: 'imported', name: 'Renamed' } });
  t.equal(await codeOf(verifier, token), 'valid');

  await admin.delete(`${path}?reason=compromised`);
  t.equal(await codeOf(verifier, token), 'deleted', 'it is still recognized');
  const left = () =>
    dbQuery(
      urls.superuser,
      `select num_nonnulls(tag, tag_keyring_id, mac, mac_keyring_id) as left, num_nonnulls(sealed, digest_sealed) as sealed
       from api_keys where id = $1`,
      [key.id],
    );
  t.same(await left(), [{ left: 4, sealed: 0 }], 'plaintext and hash are gone');
  later(31 * 86_400_000);
  const transactor = { db: client.db, keyring, clock, onAppended: enqueueDeliveries };
  const onChanged = (ids: Iterable<string>) => verification.records.invalidate(ids);
  t.equal(await purgeDeletedKeys({ transactor: { ...transactor, onChanged }, retentionSeconds: 2_592_000 }), 2);
  t.same(await left(), [{ left: 0, sealed: 0 }]);
  t.equal(await codeOf(verifier, token), 'not_found');
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('a token of a compromised key can be imported again, and the new key wins on every replica', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const { verifier: there } = await secondOf(t, service);
  const token = foreignToken();
  for (let round = 0; round < 5; round++) {
    const key = await importOne(service, { plaintext: token });
    await eventually(async () => (await codeOf(there, token)) === 'valid');
    const { body } = await there.post('/v1/verify', { key: token, permission: 'read' });
    t.equal(body.keyId, key.id);
    await admin.delete(`/v1/keys/${key.id}?reason=compromised`);
    t.equal(await codeOf(verifier, token), 'deleted');
    await eventually(async () => (await codeOf(there, token)) === 'deleted');
  }
});

t.test('a plaintext is revealed only if it was imported and the organization allows it', async (t) => {
  const service = await startService(t);
  const { admin, verifier, urls } = service;
  const [byText, byHash, later] = [foreignToken(), foreignToken(), foreignToken()];
  const key = await importOne(service, { plaintext: byText });
  const hashed = await importOne(service, { sha256: sha256Of(byHash) });
  t.same((await admin.post(`/v1/keys/${key.id}/reveal`)).body, { key: byText });
  t.match((await admin.get('/v1/history?limit=1')).body.data, [{ action: 'key.revealed', keyId: key.id }]);
  t.match(await admin.post(`/v1/keys/${hashed.id}/reveal`), {
    status: 403,
    body: { code: 'reveal_disabled', detail: /imported by its SHA-256/ },
  });
  await admin.patch('/v1/organization', { keyReveal: 'never' });
  const afterwards = await importOne(service, { plaintext: later });
  const [stored] = await dbQuery(
    urls.superuser,
    'select count(sealed)::int as plaintexts, count(digest_sealed)::int as digests from api_keys where deleted_at is null',
  );
  t.same(stored, { plaintexts: 0, digests: 3 });
  t.equal((await admin.post(`/v1/keys/${afterwards.id}/reveal`)).status, 403);
  t.equal(afterwards.maskedKey, `…${later.slice(-4)}`);
  for (const token of [byText, byHash, later]) t.equal(await codeOf(verifier, token), 'valid');
  const dump = await dbDump(urls.superuser);
  for (const trace of [byText, byHash, later].flatMap(tracesOf)) t.notOk(dump.includes(trace));
});

t.test('the rotation of an imported key creates a key of Latchkey', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const token = foreignToken();
  const key = await importOne(service, {
    sha256: sha256Of(token),
    scopes: ['a'],
    rateLimit: { requests: 5, windowSeconds: 60 },
  });
  const { status, body: rotated } = await admin.post(`/v1/keys/${key.id}/rotate`, { expireOldAfterSeconds: 3600 });
  t.equal(status, 201);
  t.match(rotated, { origin: 'created', replacesKeyId: key.id, scopes: ['a'], maskedKey: /^lk_k_…/ });
  for (const each of [token, rotated.key]) t.equal(await codeOf(verifier, each), 'valid');
  const { body: verdict } = await verifier.post('/v1/verify', { key: token, permission: 'read' });
  t.equal(verdict.rateLimit.remaining, 2, 'both share one limit');
});

t.test('rekey moves imported keys to a new keyring entry; without the old one they still verify', async (t) => {
  const old = await startService(t, { keyring: keyringOf('k1') });
  const { urls, admin } = old;
  const tokens = [foreignToken(), foreignToken(), foreignToken()] as const;
  await importOne(old, { plaintext: tokens[0] });
  await importOne(old, { sha256: sha256Of(tokens[1]) });
  const compromised = await importOne(old, { plaintext: tokens[2] });
  await admin.delete(`/v1/keys/${compromised.id}?reason=compromised`);

  const both = await secondOf(t, old, keyringOf('k2', 'k1'));
  t.equal(await codeOf(both.verifier, tokens[0]), 'valid', 'under both entries');
  for (const sha256 of tokens.slice(0, 2).map(sha256Of)) {
    const entries = [{ partnerId: await addPartner(both), sha256 }];
    t.match(await both.admin.post('/v1/keys/import', { entries }), { status: 409, body: { code: 'key_exists' } });
  }
  const { code, output } = await runRekey(t, urls.app, 'k2', 'k1');
  t.equal(code, 0, output);
  const entries = await dbQuery(
    urls.superuser,
    `select distinct tag_keyring_id as tag, mac_keyring_id as mac, digest_keyring_id as digest,
       coalesce(sealed_keyring_id, 'k2') as sealed from api_keys where origin = 'imported' and deleted_at is null`,
  );
  t.same(entries, [{ tag: 'k2', mac: 'k2', digest: 'k2', sealed: 'k2' }]);

  const only = await secondOf(t, old, keyringOf('k2'));
  for (const token of tokens.slice(0, 2)) t.equal(await codeOf(only.verifier, token), 'valid');
  t.equal(await codeOf(only.verifier, tokens[2]), 'not_found', 'the tag of a compromised key cannot be renewed');
  const again = await runRekey(t, urls.app, 'k2');
  t.equal(again.code, 0, again.output);
  t.match((await only.admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('a use renews the tag, and the loss of an entry loses the keys that are under it', async (t) => {
  const old = await startService(t, { keyring: keyringOf('k1') });
  const { urls } = old;
  const [used, unused] = [foreignToken(), foreignToken()];
  const key = await importOne(old, { sha256: sha256Of(used) });
  await importOne(old, { sha256: sha256Of(unused) });
  const both = await secondOf(t, old, keyringOf('k2', 'k1'));
  t.equal(await codeOf(both.verifier, used), 'valid');
  await eventually(async () => {
    const [row] = await dbQuery(urls.superuser, 'select tag_keyring_id as tag from api_keys where id = $1', [key.id]);
    return row?.['tag'] === 'k2';
  });
  t.equal(await codeOf(both.verifier, used), 'valid');

  const { bootstrapped } = old;
  const lost = await startService(t, {
    urls,
    keyring: { ...keyringOf('k2'), lostIds: new Set(['k1']) },
  });
  const verifier = lost.as(bootstrapped.verifierToken.reveal());
  t.equal(await codeOf(verifier, unused), 'not_found');
  t.equal(await codeOf(verifier, used), 'valid');
});

t.test('a row that was written without the keyring makes no token work', async (t) => {
  const service = await startService(t);
  const { admin, urls, verifier } = service;
  const [one, two] = [foreignToken(), foreignToken()];
  const first = await importOne(service, { plaintext: one });
  const second = await importOne(service, { plaintext: two, scopes: ['all'] });
  const { body: created } = await admin.post('/v1/keys', {});
  await dbQuery(urls.superuser, 'create table kept as select * from api_keys');
  /** What each token gets after a change of the rows by the service's role. */
  const after = async (change: string) => {
    for (const token of [one, two, created.key])
      await eventually(async () => (await codeOf(verifier, token)) === 'valid');
    await dbQuery(urls.app, change);
    await eventually(async () => (await Promise.all([one, two, created.key].map(code))).includes('not_found'));
    const codes = await Promise.all([one, two, created.key].map(code));
    await dbQuery(urls.superuser, 'delete from api_keys; insert into api_keys select * from kept');
    return codes;
  };
  const code = (token: string) => codeOf(verifier, token);
  const tagOf = (key: Json) => `(select tag from kept where id = '${key.id}')`;
  await dbQuery(urls.superuser, 'grant select on kept to public');
  const swapTags = `update api_keys set tag = decode(repeat('00', 32), 'hex') where id = '${first.id}';
    update api_keys set tag = ${tagOf(first)} where id = '${second.id}';
    update api_keys set tag = ${tagOf(second)} where id = '${first.id}'`;
  t.same(await after(swapTags), ['not_found', 'not_found', 'valid']);
  const asImported = "origin = 'imported', argon2id_hash = null, digest_sealed = 'x', digest_keyring_id = 'k'";
  const asCreated = "origin = 'created', argon2id_hash = 'x', digest_sealed = null, digest_keyring_id = null";
  for (const [key, set, codes] of [
    [first, "scopes = '{more}'", ['not_found', 'valid', 'valid']],
    [first, asCreated, ['not_found', 'valid', 'valid']],
    [created, asImported, ['valid', 'valid', 'not_found']],
  ] as const) {
    t.same(await after(`update api_keys set ${set} where id = '${key.id}'`), codes, set);
  }
  await admin.delete(`/v1/keys/${first.id}?reason=compromised`);
  await dbQuery(
    urls.app,
    `update api_keys set delete_reason = null, deleted_at = null, digest_sealed = 'x', digest_keyring_id = 'x'
     where id = '${first.id}'`,
  );
  await eventually(async () => (await code(one)) === 'not_found');
  t.equal(await code(one), 'not_found', 'a compromised key that was made live');
  await dbQuery(urls.superuser, 'drop table kept');
});

t.test('a credential without form is removed from the recorded headers of its own request', async (t) => {
  const service = await startListening(t);
  const { app, verifier, logLines } = service;
  const token = foreignToken();
  await importOne(service, { plaintext: token });
  const careless = { 'x-request-id': `id-${token}`, 'user-agent': `curl/8 (${token}; ${encodeURIComponent(token)})` };
  const gateway = { 'x-latchkey-token': verifier.token, 'x-forwarded-method': 'GET' };
  const own = { authorization: `Bearer ${verifier.token}` };
  const json = { ...own, 'content-type': 'application/json' };
  const form = { ...own, 'content-type': 'application/x-www-form-urlencoded' };
  const question = { key: token, permission: 'read' };
  const requests = [
    { url: '/v1/self', headers: { authorization: `Bearer ${token}` } },
    { url: '/v1/self', headers: { 'x-api-key': token } },
    { url: '/v1/authorize', headers: { ...gateway, authorization: `Bearer ${token}` } },
    { url: '/v1/authorize?keyHeader=X-Old', headers: { ...gateway, 'x-old': token } },
    { method: 'POST', url: '/v1/verify', headers: json, payload: JSON.stringify(question) },
    { method: 'POST', url: '/v1/verify/batch', headers: json, payload: JSON.stringify({ entries: [question] }) },
    { method: 'POST', url: '/v1/introspect', headers: form, payload: `token=${token}` },
  ] as const;
  for (const { headers, ...request } of requests) {
    const reply = await app.inject({ ...request, headers: { ...headers, ...careless } });
    t.equal(reply.statusCode, 200, request.url);
    t.equal(reply.headers['x-request-id'], 'id-[redacted]', request.url);
  }
  const admin = service.as(service.admin.token);
  const imported = foreignToken();
  const entries = [{ plaintext: imported }];
  const more = { 'x-request-id': `id-${imported}`, 'user-agent': `curl/8 ${imported}` };
  t.equal((await admin.post('/v1/keys/import', { entries }, more)).status, 201);
  t.match((await admin.get('/v1/history?limit=1')).body.data[0].request, {
    id: 'id-[redacted]',
    userAgent: 'curl/8 [redacted]',
  });
  await eventually(async () => logLines.some((line) => line.includes('/v1/keys/import')));
  for (const secret of [token, imported]) t.notOk(logLines.join('').includes(secret), 'nor is it in the log');
});

t.test('a flood of unknown texts costs few queries and no memory, and a good client is answered quickly', async (t) => {
  const service = await startService(t);
  const { admin, verifier, client, verification, hasher } = service;
  await eventually(async () => verification.feed.isLive());
  const limit = { requests: 1_000_000, windowSeconds: 60 };
  await admin.put('/v1/rate-limit', limit);
  const good = [foreignToken(), foreignToken()];
  for (const plaintext of good) await importOne(service, { plaintext, rateLimit: limit });
  for (const token of good) t.equal(await codeOf(verifier, token), 'valid');
  const runsBefore = hasher.runs;
  let queries = 0;
  client.pool.on('acquire', () => {
    queries += 1;
  });
  const goodMs: number[] = [];
  /** Sends so many a second, in ticks of 20 ms, with a good client beside them. */
  const flood = async (seconds: number, perSecond: number) => {
    const sent: Array<Promise<string>> = [];
    const startedAtMs = performance.now();
    for (let at = startedAtMs; at - startedAtMs < seconds * 1_000; at = performance.now()) {
      const due = Math.min(200, Math.floor(((at - startedAtMs) / 1_000) * perSecond) - sent.length);
      for (let index = 0; index < due; index++) sent.push(codeOf(verifier, foreignToken()));
      const askedAtMs = performance.now();
      t.equal(await codeOf(verifier, good[sent.length % 2] ?? ''), 'valid');
      goodMs.push(performance.now() - askedAtMs);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const codes = new Set(await Promise.all(sent));
    t.same([...codes], ['not_found']);
    return { sent: sent.length, seconds: (performance.now() - startedAtMs) / 1_000 };
  };
  // Fills what is remembered of unknown texts, 10,000 at most: only growth beyond it is a leak.
  for (let warmed = 0; warmed < 12_000; ) warmed += (await flood(1, 5_000)).sent;
  service.logLines.length = 0;
  collectGarbage();
  const heapBefore = process.memoryUsage().heapUsed;
  const queriesBefore = queries;
  goodMs.length = 0;
  const { sent, seconds } = await flood(4, 5_000);
  service.logLines.length = 0;
  collectGarbage();
  const grownBy = process.memoryUsage().heapUsed - heapBefore;
  const used = queries - queriesBefore;
  goodMs.sort((one, other) => one - other);
  const p99 = goodMs[Math.floor(goodMs.length * 0.99)] ?? Number.POSITIVE_INFINITY;
  t.comment(
    `${sent} unknown texts in ${seconds.toFixed(1)} s, ${used} queries, ${grownBy} bytes, p99 ${p99.toFixed(1)} ms`,
  );
  t.ok(used < sent / 5, `${used} queries for ${sent} texts`);
  t.ok(grownBy < 8 * 1024 * 1024, `the heap grew by ${grownBy} bytes`);
  t.equal(hasher.runs, runsBefore, 'argon2id never ran');
});
