import { mintToken } from '../src/crypto/token.ts';
import { idSuffix } from '../src/domain/ids.ts';
import { pruneDeletedUses } from '../src/verification/usage-store.ts';
import { type Client, type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

const hour = 3_600_000;

const uses = async (admin: Client): Promise<Json[]> =>
  (await admin.get('/v1/history?limit=200&action=key.used_after_deletion')).body.data;

t.test('each use of a deleted key is counted, and recorded in history once an hour', async (t) => {
  const service = await startService(t);
  const { admin, verifier, verification } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  const verify = async (more: Record<string, unknown> = {}) =>
    (await verifier.post('/v1/verify', { key: key.key, permission: 'read', ...more })).body.code;
  t.equal(await verify(), 'valid');
  await admin.delete(`/v1/keys/${key.id}`);
  for (const ip of ['203.0.113.7', '203.0.113.8', undefined]) t.equal(await verify({ ip }), 'deleted');

  const [event] = await eventually(async () => {
    const found = await uses(admin);
    return found.length > 0 && found;
  }, 5_000);
  t.match(event, {
    keyId: key.id,
    partnerId: partner.id,
    actor: { type: 'system', id: 'verification' },
    request: null,
    details: { ip: '203.0.113.7', presentedAt: /^20.*Z$/ },
  });
  await verify();
  await verification.usage.flush();
  t.equal((await uses(admin)).length, 1);
  for (const path of [`/v1/keys/${key.id}`, `/v1/partners/${partner.id}`]) {
    const { body } = await admin.get(`${path}/usage`);
    t.same(body.total, { allowed: 1, denied: 4, rateLimited: 0, afterDeletion: 4 });
    t.equal(body.data.at(-1).afterDeletion, 4);
    t.equal((await admin.get(`${path}/usage?granularity=day`)).body.total.afterDeletion, 4);
  }

  service.later(hour);
  await verify({ ip: '2001:db8::1' });
  await verification.usage.flush();
  t.same(
    (await uses(admin)).map(({ details }) => details.ip),
    ['2001:db8::1', '203.0.113.7'],
    'again in the next hour',
  );
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('uses are recorded in whatever way the key is presented, and for whatever reason it was deleted', async (t) => {
  const service = await startService(t, { trustProxy: ['127.0.0.1'] });
  const { app, admin, verifier, verification } = service;
  const make = async (reason: string) => {
    const { body: key } = await admin.post('/v1/keys', {});
    await admin.delete(`/v1/keys/${key.id}?reason=${reason}`);
    return key as Json;
  };
  const keys = { gateway: await make('compromised'), introspect: await make('unused'), uncounted: await make('other') };
  const gateway = await app.inject({
    url: '/v1/authorize',
    headers: {
      'x-api-key': keys.gateway.key,
      'x-latchkey-token': verifier.token,
      'x-forwarded-method': 'GET',
      'x-forwarded-for': '198.51.100.9',
    },
  });
  t.equal(gateway.statusCode, 401);
  const introspected = await app.inject({
    method: 'POST',
    url: '/v1/introspect',
    headers: { authorization: `Bearer ${verifier.token}`, 'content-type': 'application/x-www-form-urlencoded' },
    payload: `token=${keys.introspect.key}`,
  });
  t.same(introspected.json(), { active: false });
  await verifier.post('/v1/verify', { key: keys.uncounted.key, permission: 'read', cost: 0 });
  await verification.usage.flush();
  const found = Object.fromEntries((await uses(admin)).map(({ keyId, details }) => [keyId, details.ip]));
  t.same(found, { [keys.gateway.id]: '198.51.100.9', [keys.introspect.id]: null, [keys.uncounted.id]: null });
  const counted = async ({ id }: Json) => (await admin.get(`/v1/keys/${id}/usage`)).body.total.afterDeletion;
  t.equal(await counted(keys.gateway), 1);
  t.same([await counted(keys.introspect), await counted(keys.uncounted)], [0, 0], 'calls without counting');
});

t.test("only the right secret reveals that a key was deleted, and only to the key's organization", async (t) => {
  const service = await startService(t);
  const { admin, operator, verifier, verification, as } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: suspended } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${key.id}`);
  await admin.post(`/v1/keys/${suspended.id}/suspend`);
  const wrongSecret = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(key.id) }).reveal();
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const input = { role: 'verifier', scopes: ['read'], name: 'Theirs' };
  const { body: otherVerifier } = await operator.post('/v1/access-tokens', input, {
    'latchkey-organization': other.id,
  });
  for (const [client, presented, code] of [
    [verifier, wrongSecret, 'not_found'],
    [as(otherVerifier.token), key.key, 'not_found'],
    [verifier, suspended.key, 'suspended'],
  ] as const) {
    t.equal((await client.post('/v1/verify', { key: presented, permission: 'read' })).body.code, code);
  }
  await verification.usage.flush();
  t.same(await uses(admin), []);
  t.equal((await admin.get(`/v1/keys/${key.id}/usage`)).body.total.denied, 0);
  t.match((await admin.get(`/v1/keys/${suspended.id}/usage`)).body.total, { denied: 1, afterDeletion: 0 });
});

t.test('several replicas record a use once', async (t) => {
  const first = await startService(t);
  const second = await startService(t, { urls: first.urls, keyring: first.keyring });
  const input = { role: 'verifier', scopes: ['read'], name: 'For all' };
  const { body: forAll } = await first.operator.post('/v1/access-tokens', input);
  const keys: Json[] = [];
  for (let index = 0; index < 10; index++) {
    const { body: key } = await first.admin.post('/v1/keys', {});
    await first.admin.delete(`/v1/keys/${key.id}`);
    keys.push(key);
  }
  const present = async (service: typeof first, key: Json) => {
    const { body } = await service.as(forAll.token).post('/v1/verify', { key: key.key, permission: 'read' });
    t.equal(body.code, 'deleted');
  };
  for (const key of keys) await present(first, key);
  for (const key of keys.toReversed()) await present(second, key);
  await Promise.all([first, second].map(({ verification }) => verification.usage.flush()));
  t.same((await uses(first.admin)).map(({ keyId }) => keyId).sort(), keys.map(({ id }) => id).sort());
  t.match((await first.admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('the request does not wait for the recording, which is retried if it fails', async (t) => {
  const service = await startService(t);
  const { admin, verifier, verification, urls, logLines } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${key.id}`);
  await dbQuery(urls.owner, 'alter function history_append(text, text) rename to history_append_away');
  const { body } = await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  t.equal(body.code, 'deleted');
  await verification.usage.flush();
  t.match(logLines.join(''), 'Uses of deleted keys: not written. Latchkey will retry.');
  t.same(await dbQuery(urls.superuser, 'select * from deleted_key_uses'), [], 'neither the event nor its mark exists');
  await dbQuery(urls.owner, 'alter function history_append_away(text, text) rename to history_append');
  await eventually(async () => (await uses(admin)).length === 1, 5_000);
});

t.test('memory holds at most one entry per key, however often it is presented', async (t) => {
  const service = await startService(t);
  const { admin, verifier, verification, urls } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${key.id}`);
  await Promise.all(
    Array.from({ length: 200 }, () => verifier.post('/v1/verify', { key: key.key, permission: 'read', ip: '::1' })),
  );
  await verification.usage.flush();
  const [rows] = await dbQuery(urls.superuser, 'select count(*)::int as marks from deleted_key_uses');
  t.same(rows, { marks: 1 });
  t.equal((await uses(admin)).length, 1);
  t.equal((await admin.get(`/v1/keys/${key.id}/usage`)).body.total.afterDeletion, 200);
});

t.test('marks of past hours are deleted', async (t) => {
  const service = await startService(t);
  const { admin, verifier, verification, urls, client } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${key.id}`);
  for (const _ of ['today', 'tomorrow']) {
    await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
    await verification.usage.flush();
    service.later(24 * hour);
  }
  const marks = () => dbQuery(urls.superuser, 'select hour from deleted_key_uses order by hour');
  const [, second] = await marks();
  service.later(-hour);
  t.equal(await pruneDeletedUses({ db: client.db, clock: service.clock }), 1);
  t.same(await marks(), [second]);
  t.equal((await uses(admin)).length, 2, 'history keeps both');
});
