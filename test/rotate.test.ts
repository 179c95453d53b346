import { expiringSoon } from '../src/keys/policy.ts';
import { type Client, type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

const hour = 3_600_000;

const events = async (admin: Client, count = 200): Promise<Json[]> =>
  (await admin.get(`/v1/history?limit=${count}`)).body.data;

t.test(
  'a key is rotated without downtime: the new key has the same settings, and the old key gets an expiry',
  async (t) => {
    const service = await startService(t);
    const { admin, verifier } = service;
    const { body: partner } = await admin.post('/v1/partners', {
      email: 'p@p.example',
      permissions: ['read', 'write'],
    });
    const [old] = partner.keys;
    const settings = {
      name: 'Export',
      metadata: { team: 'a', deep: { list: [1, null] } },
      allowedIps: ['203.0.113.0/24'],
      rateLimit: { requests: 5, windowSeconds: 60 },
    };
    await admin.patch(`/v1/keys/${old.id}`, settings);

    const {
      status,
      headers,
      body: created,
    } = await admin.post(`/v1/keys/${old.id}/rotate`, {
      expireOldAfterSeconds: 3_600,
    });
    t.equal(status, 201);
    t.equal(headers['location'], `/v1/keys/${created.id}`);
    t.match(created, { ...settings, partnerId: partner.id, permission: 'read', status: 'active', expiresAt: null });
    const { key, ...shown } = created;
    t.same((await admin.get(`/v1/keys/${created.id}`)).body, shown);
    t.same((await admin.post(`/v1/keys/${created.id}/reveal`)).body, { key });

    const { body: oldKey } = await admin.get(`/v1/keys/${old.id}`);
    t.equal(Date.parse(oldKey.expiresAt) - Date.parse(created.createdAt), hour);
    const [, rotated, createdEvent] = await events(admin, 3);
    t.match(rotated, {
      action: 'key.rotated',
      keyId: old.id,
      partnerId: partner.id,
      details: { newKeyId: created.id, changes: { expiresAt: { from: null, to: oldKey.expiresAt } } },
    });
    t.match(createdEvent, {
      action: 'key.created',
      keyId: created.id,
      details: { ...settings, replacesKeyId: old.id },
    });

    const verify = async (presented: Json) =>
      (await verifier.post('/v1/verify', { key: presented.key, permission: 'read', ip: '203.0.113.7' })).body.code;
    t.same([await verify(old), await verify(created)], ['valid', 'valid']);
    service.later(hour);
    t.same([await verify(old), await verify(created)], ['expired', 'valid']);
  },
);

t.test('the new key shares the limit counter of the old key', async (t) => {
  const { admin, verifier, urls } = await startService(t);
  const { body: first } = await admin.post('/v1/keys', { rateLimit: { requests: 10, windowSeconds: 60 } });
  t.equal(first.replacesKeyId, null);
  const verify = async ({ key }: Json, cost = 1) =>
    (await verifier.post('/v1/verify', { key, permission: 'read', cost })).body;
  t.match(await verify(first, 8), { rateLimit: { policy: 'key', remaining: 2 } });
  const { body: second } = await admin.post(`/v1/keys/${first.id}/rotate`, {});
  t.equal(second.replacesKeyId, first.id);
  t.match(await verify(second), { code: 'valid', rateLimit: { policy: 'key', limit: 10, remaining: 1 } });
  t.match(
    await verify(first),
    { code: 'valid', rateLimit: { remaining: 0 } },
    'both keys share the counter while both are live',
  );
  t.match(await verify(second), { code: 'rate_limited' });

  await t.test('the counter is kept over several rotations, even if earlier keys are deleted', async (t) => {
    await admin.delete(`/v1/keys/${first.id}`);
    const { body: third } = await admin.post(`/v1/keys/${second.id}/rotate`, {});
    t.equal(third.replacesKeyId, second.id);
    t.match(await verify(third), { code: 'rate_limited' });
    await admin.patch(`/v1/keys/${third.id}`, { rateLimit: { requests: 11, windowSeconds: 60 } });
    t.match(await verify(third), { code: 'valid', rateLimit: { limit: 11, remaining: 0 } });
    t.match((await admin.get(`/v1/keys/${third.id}`)).body, { replacesKeyId: second.id });
  });

  await t.test('writing to the database without the keyring cannot reset the counter', async (t) => {
    const { body: partner } = await admin.post('/v1/partners', { email: 'c@p.example', permissions: ['read'] });
    const { body: next } = await admin.post(`/v1/keys/${partner.keys[0].id}/rotate`, {});
    t.equal((await verify(next)).code, 'valid');
    await dbQuery(urls.app, 'update api_keys set limit_bucket_id = id where id = $1', [next.id]);
    const headers = { 'cache-control': 'no-cache' };
    const reply = await verifier.post('/v1/verify', { key: next.key, permission: 'read' }, headers);
    t.equal(reply.body.code, 'not_found');
  });

  await t.test('a different window of one key does not reset the window of the other', async (t) => {
    const { body: one } = await admin.post('/v1/partners', { email: 'w@p.example', permissions: ['read'] });
    const [old] = one.keys;
    await admin.patch(`/v1/keys/${old.id}`, { rateLimit: { requests: 5, windowSeconds: 60 } });
    const { body: next } = await admin.post(`/v1/keys/${old.id}/rotate`, {});
    await admin.patch(`/v1/keys/${next.id}`, { rateLimit: { requests: 5, windowSeconds: 90 } });
    const codes = [];
    for (let round = 0; round < 8; round++) codes.push((await verify(old)).code, (await verify(next)).code);
    t.equal(codes.filter((code) => code === 'valid').length, 10);
  });

  await t.test('a key that was created without rotation has its own counter', async (t) => {
    const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
    const { body: unrelated } = await admin.post('/v1/keys', {
      partnerId: partner.id,
      rateLimit: { requests: 10, windowSeconds: 60 },
    });
    t.match(await verify(unrelated), { rateLimit: { policy: 'key', remaining: 9 } });
  });
});

t.test('without expireOldAfterSeconds the old key does not change', async (t) => {
  const { admin } = await startService(t);
  const { body: created } = await admin.post('/v1/keys', { name: 'Old' });
  const { body: before } = await admin.get(`/v1/keys/${created.id}`);
  for (const body of [undefined, {}]) {
    const { status, body: second } = await admin.post(`/v1/keys/${created.id}/rotate`, body);
    t.equal(status, 201);
    t.same((await admin.get(`/v1/keys/${created.id}`)).body, before);
    t.match((await events(admin, 1))[0], { action: 'key.rotated', details: { newKeyId: second.id, changes: {} } });
    await admin.delete(`/v1/keys/${second.id}`);
  }
});

t.test('rotation can only shorten the life of the old key', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const expiresAt = new Date(Date.now() + 2 * hour).toISOString();
  const { body: old } = await admin.post('/v1/keys', { expiresAt });
  const rotate = async (expireOldAfterSeconds: number) => {
    const { body } = await admin.post(`/v1/keys/${old.id}/rotate`, { expireOldAfterSeconds });
    t.equal(body.expiresAt, null, 'the new key has no expiry');
    await admin.delete(`/v1/keys/${body.id}`);
    return (await admin.get(`/v1/keys/${old.id}`)).body;
  };
  t.equal((await rotate(86_400)).expiresAt, expiresAt);
  t.same((await events(admin, 2))[1].details.changes, {});
  t.ok((await rotate(60)).expiresAt < expiresAt);
  const { status } = await rotate(0);
  t.equal(status, 'expired', 'at once');
  for (const expireOldAfterSeconds of [-1, 0.5, 31_536_001, '60', null]) {
    const { body } = await admin.post(`/v1/keys/${old.id}/rotate`, { expireOldAfterSeconds });
    t.equal(body.errors[0].path, 'body.expireOldAfterSeconds');
  }
});

t.test('a rotation revives no key, and does not change a full row', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const rotate = (key: Json) => admin.post(`/v1/keys/${key.id}/rotate`, { expireOldAfterSeconds: 60 });
  const { body: key } = await admin.post('/v1/keys', { expiresAt: new Date(Date.now() + hour).toISOString() });
  const { body: second } = await admin.post('/v1/keys', {});
  const { body: before } = await admin.get('/v1/keys');
  let count = (await events(admin)).length;
  const full = await rotate(key);
  t.match(full, { status: 409, body: { code: 'row_full', keyIds: [key.id, second.id] } });
  t.same((await admin.get('/v1/keys')).body, before);
  await admin.delete(`/v1/keys/${second.id}`);
  await admin.post(`/v1/keys/${key.id}/suspend`);
  count = (await events(admin)).length;
  t.match(await rotate(key), { status: 409, body: { code: 'conflict', detail: /is suspended/ } });
  t.match(await rotate(second), { status: 409, body: { code: 'already_deleted' } });
  t.match(await rotate({ id: 'key_01k9s3v5wqe8n8x4r2m6t7yb0c' }), { status: 404 });
  await admin.post(`/v1/keys/${key.id}/resume`);
  service.later(hour);
  t.match(await rotate(key), { status: 409, body: { code: 'conflict', detail: /is expired/ } });
  t.equal((await events(admin)).length, count + 1, 'only the resumption is recorded');
  t.equal((await admin.get('/v1/rows')).body.data[0].freePlaces, 1);
  t.equal((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code, 'expired');
});

t.test(
  'a key of a suspended partner can be rotated; both keys are rejected until the partner is resumed',
  async (t) => {
    const { admin, verifier } = await startService(t);
    const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
    const [old] = partner.keys;
    await admin.post(`/v1/partners/${partner.id}/suspend`);
    const { status, body: created } = await admin.post(`/v1/keys/${old.id}/rotate`, { expireOldAfterSeconds: 0 });
    t.equal(status, 201);
    const verify = async (key: Json) =>
      (await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code as string;
    t.same([await verify(old), await verify(created)], ['partner_suspended', 'partner_suspended']);
    await admin.post(`/v1/partners/${partner.id}/resume`);
    t.same([await verify(old), await verify(created)], ['expired', 'valid']);
  },
);

t.test('with keyReveal never, only the reply to the rotation contains the new plaintext', async (t) => {
  const { admin } = await startService(t);
  const { body: old } = await admin.post('/v1/keys', {});
  await admin.patch('/v1/organization', { keyReveal: 'never' });
  const { body: created } = await admin.post(`/v1/keys/${old.id}/rotate`);
  t.ok(created.key);
  t.equal((await admin.post(`/v1/keys/${created.id}/reveal`)).body.code, 'reveal_disabled');
  t.match((await events(admin, 1))[0], { action: 'key.rotated' });
});

t.test('rows list keys that expire soon', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const expiresIn = (days: number) => new Date(Date.now() + days * 24 * hour).toISOString();
  const { body: later } = await admin.post('/v1/keys', { expiresAt: expiresIn(8) });
  const { body: sooner } = await admin.post('/v1/keys', { expiresAt: expiresIn(2) });
  const soon = async () => (await admin.get('/v1/rows')).body.data[0].expiringSoon;
  t.same(await soon(), [sooner.id]);
  service.later(1.5 * 24 * hour);
  t.same(await soon(), [sooner.id, later.id], 'the earliest expiry first');
  service.later(24 * hour);
  t.same(await soon(), [later.id], 'expired keys are not listed');

  const now = new Date('2026-06-01T12:00:00.000Z');
  const after = (ms: number) => ({ id: ms, expires_at: new Date(now.getTime() + ms) });
  const week = 7 * 24 * hour;
  const keys = [{ id: 'never', expires_at: null }, after(week), after(week + 1), after(0), after(1), after(-1)];
  t.same(expiringSoon<unknown>(keys, now), [1, week]);
});
