import type { Test } from 'tap';
import { mintToken } from '../src/crypto/token.ts';
import { Problem } from '../src/domain/errors.ts';
import { idSuffix, type KeyId, newId } from '../src/domain/ids.ts';
import { requireMayRevokeItself, requireMayRotateItself, requireSelfService } from '../src/self-service/policy.ts';
import { type Json, type Reply, startService, type TestService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// The holder of a key rotates and revokes it with the key itself.

const withKey = (key: string) => ({ 'idempotency-key': key });

async function startSelfService(t: Test, overrides: Parameters<typeof startService>[1] = {}) {
  const service = await startService(t, overrides);
  await service.admin.patch('/v1/organization', { selfService: true });
  return service;
}

async function partnerKey({ admin }: TestService, permission = 'read'): Promise<Json> {
  const email = `p${Math.random()}@p.example`;
  return (await admin.post('/v1/partners', { email, permissions: [permission] })).body.keys[0];
}

const codeOf = ({ status, body }: Reply) => [status, body.code];
const liveKeys = async ({ admin }: TestService, { partnerId }: Json): Promise<Json[]> =>
  (await admin.get(`/v1/keys?partnerId=${partnerId}`)).body.data;
const verdictOf = async ({ verifier }: TestService, { key, permission }: Json): Promise<string> =>
  (await verifier.post('/v1/verify', { key, permission })).body.code;

t.test('the state of a key and the address decide about rotating it, only a deletion about revoking it', async (t) => {
  const now = new Date('2026-06-01T00:00:00Z');
  const past = new Date('2026-05-01T00:00:00Z');
  const key = {
    permission: 'read',
    expires_at: null,
    allowed_ips: [],
    scopes: [],
    suspended_at: null,
    partner_suspended_at: null,
    deleted_at: null,
  } as const;
  const codeIn = (decide: () => unknown) => {
    try {
      decide();
      return 'yes';
    } catch (error) {
      if (error instanceof Problem) return error.code;
      throw error;
    }
  };
  for (const [what, change, rotate, revoke] of [
    ['a valid key', {}, 'yes', 'yes'],
    ['one that only writes', { permission: 'write' }, 'yes', 'yes'],
    ['one of the default row', { permission: 'read_write' }, 'yes', 'yes'],
    ['one with scopes', { scopes: ['invoices:read'] }, 'yes', 'yes'],
    ['one from an allowed address', { allowed_ips: ['203.0.113.0/24'] }, 'yes', 'yes'],
    ['one from another address', { allowed_ips: ['198.51.100.0/24'] }, 'forbidden', 'yes'],
    ['one that expires later', { expires_at: new Date('2026-07-01') }, 'yes', 'yes'],
    ['an expired one', { expires_at: now }, 'token_expired', 'yes'],
    ['a suspended one', { suspended_at: past }, 'unauthorized', 'yes'],
    ['one of a suspended partner', { partner_suspended_at: past }, 'unauthorized', 'yes'],
    ['a deleted one', { deleted_at: past }, 'unauthorized', 'unauthorized'],
  ] as const) {
    const changed = { ...key, ...change };
    t.equal(
      codeIn(() => requireMayRotateItself(changed, '203.0.113.7', now)),
      rotate,
      `rotate ${what}`,
    );
    t.equal(
      codeIn(() => requireMayRevokeItself(changed)),
      revoke,
      `revoke ${what}`,
    );
  }
  t.equal(
    codeIn(() => requireSelfService({ self_service: true })),
    'yes',
  );
  t.equal(
    codeIn(() => requireSelfService({ self_service: false })),
    'self_service_disabled',
  );
});

t.test('the holder of a key rotates it: a new key in the same row, recorded with the key as the actor', async (t) => {
  const service = await startSelfService(t);
  const { admin, as } = service;
  const key = await partnerKey(service);
  await admin.patch(`/v1/keys/${key.id}`, { name: 'Shop', metadata: { note: 'internal' }, scopes: ['a:b'] });
  const reply = await as(key.key).post('/v1/self/rotate', { expireOldAfterSeconds: 3_600 });
  t.match(reply, { status: 201, headers: { location: '/v1/self' } });
  const { body: created } = reply;
  t.match(created, {
    permission: 'read',
    partnerId: key.partnerId,
    replacesKeyId: key.id,
    name: 'Shop',
    scopes: ['a:b'],
    status: 'active',
  });
  for (const hidden of ['metadata', 'createdBy', 'lastUsedAt']) t.notOk(hidden in created, hidden);
  t.match((await as(created.key).get('/v1/self')).body, { id: created.id, kind: 'api_key' });
  t.equal(await verdictOf(service, key), 'valid', 'the old key works until it expires');
  service.later(3_600_000);
  t.equal(await verdictOf(service, key), 'expired');
  t.equal(await verdictOf(service, created), 'valid');

  const actor = { type: 'api_key', id: key.id, name: 'Shop', email: null };
  t.match((await admin.get(`/v1/keys/${created.id}`)).body, { createdBy: actor, metadata: { note: 'internal' } });
  const { body: history } = await admin.get(`/v1/history?actorId=${key.id}`);
  t.match(history.data, [
    { action: 'key.rotated', keyId: key.id, actor, request: { ip: '127.0.0.1' }, details: { newKeyId: created.id } },
    { action: 'key.created', keyId: created.id, actor, details: { replacesKeyId: key.id } },
  ]);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('the holder of a key revokes it; an admin can restore it within the undo window', async (t) => {
  const service = await startSelfService(t);
  const { admin, as } = service;
  const key = await partnerKey(service);
  const reply = await as(key.key).post('/v1/self/revoke');
  t.match(reply, { status: 200, body: { id: key.id, status: 'deleted' } });
  t.ok(reply.body.restorableUntil);
  for (const hidden of ['metadata', 'createdBy', 'key']) t.notOk(hidden in reply.body, hidden);
  t.equal(await verdictOf(service, key), 'deleted');
  t.match((await admin.get(`/v1/keys/${key.id}/history?limit=1`)).body.data, [
    // A key without a name is named by its id.
    {
      action: 'key.deleted',
      actor: { type: 'api_key', id: key.id, name: key.id },
      details: { reason: 'owner_request' },
    },
  ]);
  t.same(codeOf(await as(key.key).post('/v1/self/revoke')), [401, 'unauthorized'], 'a second time');
  t.match(await admin.delete(`/v1/keys/${key.id}?reason=owner_request`), { status: 400 }, 'not a reason for admins');
  t.match(await admin.post(`/v1/keys/${key.id}/restore`), { status: 200, body: { status: 'active' } });
  t.equal(await verdictOf(service, key), 'valid');
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('without self-service the holder changes nothing, and the attempt is counted', async (t) => {
  const service = await startService(t);
  const { admin, as } = service;
  const key = await partnerKey(service);
  for (const path of ['/v1/self/rotate', '/v1/self/revoke']) {
    t.same(codeOf(await as(key.key).post(path)), [403, 'self_service_disabled'], path);
  }
  await admin.post(`/v1/keys/${key.id}/suspend`);
  t.same(codeOf(await as(key.key).post('/v1/self/revoke')), [403, 'self_service_disabled'], 'a suspended key');
  t.equal((await liveKeys(service, key)).length, 1);
  t.same((await admin.get(`/v1/history?actorId=${key.id}`)).body.data, []);
  const counted = await eventually(async () => {
    const { body } = await admin.get(`/v1/history?kind=refused&actorId=${key.id}`);
    return body.data.length === 2 && body.data;
  });
  t.match(
    counted.map(({ operation, caller, count }: Json) => [operation, caller.type, caller.name, count]).sort(),
    [
      ['revokeSelf', 'api_key', null, 2],
      ['rotateSelf', 'api_key', null, 1],
    ],
    'also of a key without a name',
  );
});

t.test('a credential that is no valid key gets the same reply as at GET /v1/self', async (t) => {
  const service = await startSelfService(t);
  const { admin, as } = service;
  const { key: token, id } = await partnerKey(service);
  const wrongSecret = (await partnerKey(service)).key.replace(/lk_k_[^_]+/, token.match(/lk_k_[^_]+/)[0]);
  const minted = (keyId: KeyId) => mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(keyId) }).reveal();
  const { id: live } = await partnerKey(service);
  await admin.delete(`/v1/keys/${id}`);
  for (const credential of [token, wrongSecret, minted(newId('key')), minted(live), 'nonsense']) {
    const self = await as(credential).get('/v1/self');
    t.equal(self.status, 401);
    for (const path of ['/v1/self/rotate', '/v1/self/revoke']) {
      const reply = await as(credential).post(path);
      const { requestId, traceId, ...body } = reply.body;
      const { requestId: _, traceId: __, ...expected } = self.body;
      t.same(body, expected, `${credential} ${path}`);
      t.equal(reply.headers['www-authenticate'], self.headers['www-authenticate']);
    }
  }
});

t.test('a key that may not be used cannot be rotated, but revoked', async (t) => {
  const service = await startSelfService(t);
  const { admin, as } = service;
  const makeUnusable: Record<string, [make: (key: Json) => Promise<unknown>, status: number, code: string]> = {
    suspended: [({ id }) => admin.post(`/v1/keys/${id}/suspend`), 401, 'unauthorized'],
    'of a suspended partner': [({ partnerId }) => admin.post(`/v1/partners/${partnerId}/suspend`), 401, 'unauthorized'],
    'at another address': [
      ({ id }) => admin.patch(`/v1/keys/${id}`, { allowedIps: ['203.0.113.0/24'] }),
      403,
      'forbidden',
    ],
    expired: [
      async ({ id }) => {
        await admin.patch(`/v1/keys/${id}`, { expiresAt: new Date(service.clock.nowMs() + 1_000).toISOString() });
        service.later(2_000);
      },
      401,
      'token_expired',
    ],
  };
  for (const [what, [make, status, code]] of Object.entries(makeUnusable)) {
    const key = await partnerKey(service);
    await make(key);
    t.same(codeOf(await as(key.key).post('/v1/self/rotate')), [status, code], what);
    t.equal((await liveKeys(service, key)).length, 1, what);
    t.match(await as(key.key).post('/v1/self/revoke'), { status: 200, body: { status: 'deleted' } }, what);
  }
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('a full row is row_full, and the maximum lifetime applies', async (t) => {
  const service = await startSelfService(t);
  const { admin, as } = service;
  const key = await partnerKey(service, 'write');
  await admin.patch('/v1/organization', { maxKeyLifetimeSeconds: 3_600 });
  const far = await as(key.key).post('/v1/self/rotate', { expireOldAfterSeconds: 3_601 });
  t.match(far, { status: 400, body: { errors: [{ path: 'body.expireOldAfterSeconds' }] } });
  const { body: second } = await as(key.key).post('/v1/self/rotate');
  t.equal(Date.parse(second.expiresAt) - Date.parse(second.createdAt), 3_600_000);
  const full = await as(second.key).post('/v1/self/rotate');
  t.match(full, { status: 409, body: { code: 'row_full', keyIds: [key.id, second.id] } });
  t.match(await as(key.key).post('/v1/self/revoke'), { status: 200 });
  t.match(await as(second.key).post('/v1/self/rotate'), { status: 201 });
});

t.test('a retry with the same Idempotency-Key gets the first reply, also if the key has expired since', async (t) => {
  const service = await startSelfService(t);
  const { admin, as } = service;
  const key = await partnerKey(service);
  const rotate = () => as(key.key).post('/v1/self/rotate', { expireOldAfterSeconds: 0 }, withKey('once'));
  const first = await rotate();
  t.equal(first.status, 201);
  t.same(codeOf(await as(key.key).post('/v1/self/rotate')), [401, 'token_expired'], 'the old key has ended');
  const again = await rotate();
  t.equal(again.headers['idempotent-replayed'], 'true');
  t.same([again.status, again.body, again.headers.location], [201, first.body, first.headers.location]);
  t.equal((await liveKeys(service, key)).length, 2);
  const created = () => admin.get(`/v1/history?actorId=${key.id}&action=key.created`);
  t.equal((await created()).body.data.length, 1);
  const differently = await as(key.key).post('/v1/self/rotate', { expireOldAfterSeconds: 1 }, withKey('once'));
  t.same(codeOf(differently), [422, 'idempotency_mismatch']);
  service.later(15 * 60_000);
  t.match(await rotate(), { status: 409, body: { code: 'reply_gone', created: [first.body.id] } });

  await admin.delete(`/v1/keys/${key.id}?reason=compromised`);
  t.same(codeOf(await rotate()), [401, 'unauthorized'], 'a deleted key gets no plaintext any more');

  const revoke = () => as(first.body.key).post('/v1/self/revoke', {}, withKey('once'));
  const revoked = await revoke();
  const revokedAgain = await revoke();
  t.same([revokedAgain.status, revokedAgain.body], [200, revoked.body]);
  t.equal(revokedAgain.headers['idempotent-replayed'], 'true');
  t.same(codeOf(await as(first.body.key).post('/v1/self/revoke')), [401, 'unauthorized']);
  const deletions = await admin.get(`/v1/history?keyId=${first.body.id}&action=key.deleted`);
  t.equal(deletions.body.data.length, 1);
});

t.test('a retry from an address that the key does not allow gets no plaintext', async (t) => {
  const service = await startSelfService(t, { trustProxy: ['127.0.0.1'] });
  const { admin, as } = service;
  const key = await partnerKey(service);
  await admin.patch(`/v1/keys/${key.id}`, { allowedIps: ['203.0.113.0/24'] });
  const rotateFrom = (ip: string) =>
    as(key.key).post('/v1/self/rotate', {}, { ...withKey('rotate-2026-06'), 'x-forwarded-for': ip });
  const first = await rotateFrom('203.0.113.7');
  t.equal(first.status, 201);
  t.same(codeOf(await rotateFrom('198.51.100.7')), [403, 'forbidden']);
  t.match(await rotateFrom('203.0.113.8'), { status: 201, body: { id: first.body.id, key: first.body.key } });
  const { body: created } = await admin.get(`/v1/history?actorId=${key.id}&action=key.created`);
  t.equal(created.data.length, 1);
});

t.test('another key with the same Idempotency-Key is another request', async (t) => {
  const service = await startSelfService(t);
  const [one, other] = [await partnerKey(service), await partnerKey(service)];
  for (const key of [one, other]) {
    const { status, body } = await service.as(key.key).post('/v1/self/rotate', {}, withKey('same'));
    t.match([status, body.replacesKeyId], [201, key.id]);
  }
});

t.test('with keyReveal never a retry gets the id of the new key and no plaintext', async (t) => {
  const service = await startSelfService(t);
  const key = await partnerKey(service);
  await service.admin.patch('/v1/organization', { keyReveal: 'never' });
  const rotate = () => service.as(key.key).post('/v1/self/rotate', {}, withKey('once'));
  const first = await rotate();
  t.equal(first.status, 201);
  t.match(await rotate(), { status: 409, body: { code: 'reply_gone', created: [first.body.id] } });
});

t.test('of 20 concurrent rotations by the holder one succeeds; with one Idempotency-Key all get its key', async (t) => {
  const service = await startSelfService(t);
  const { admin, as } = service;
  for (let round = 0; round < 5; round++) {
    const key = await partnerKey(service);
    const replies = await Promise.all(Array.from({ length: 20 }, () => as(key.key).post('/v1/self/rotate')));
    const lost = replies.filter(({ status }) => status !== 201);
    t.equal(lost.length, 19);
    t.ok(
      lost.every(({ status, body }) => status === 409 && body.code === 'row_full'),
      JSON.stringify(lost.map(codeOf)),
    );
    t.equal((await liveKeys(service, key)).length, 2);
  }
  const key = await partnerKey(service);
  const rotate = () => as(key.key).post('/v1/self/rotate', {}, withKey('once'));
  const replies = await Promise.all(Array.from({ length: 20 }, rotate));
  t.ok(replies.every(({ status, body }) => status === 201 || body.code === 'idempotency_in_progress'));
  const created = new Set(replies.filter(({ status }) => status === 201).map(({ body }) => body.id));
  t.equal(created.size, 1);
  t.equal((await liveKeys(service, key)).length, 2);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('a rotation and a deletion at once end in one of their two orders', async (t) => {
  const service = await startSelfService(t);
  const { admin, as } = service;
  const outcomes = new Set<string>();
  for (let round = 0; round < 30; round++) {
    const key = await partnerKey(service);
    const isOwn = round % 2 === 0;
    const [rotated, deleted] = await Promise.all([
      as(key.key).post('/v1/self/rotate'),
      isOwn ? as(key.key).post('/v1/self/revoke') : admin.delete(`/v1/keys/${key.id}?reason=compromised`),
    ]);
    t.equal(deleted.status, 200);
    const live = await liveKeys(service, key);
    outcomes.add(rotated.status === 201 ? 'rotated' : rotated.body.code);
    t.same(
      live.map(({ id }) => id),
      rotated.status === 201 ? [rotated.body.id] : [],
    );
  }
  t.ok(
    [...outcomes].every((outcome) => ['rotated', 'unauthorized'].includes(outcome)),
    [...outcomes].join(', '),
  );
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('self-rotation is limited like a reveal, each key by itself', async (t) => {
  const service = await startSelfService(t, { limits: { callerLimit: 100, addressLimit: 100, revealLimit: 3 } });
  const key = await partnerKey(service);
  const rotate = (by: Json) => service.as(by.key).post('/v1/self/rotate');
  t.equal((await rotate(key)).status, 201);
  for (let more = 0; more < 2; more++) t.equal((await rotate(key)).status, 409);
  t.match(await rotate(key), { status: 429, body: { code: 'rate_limited' } });
  t.equal((await rotate(await partnerKey(service))).status, 201);
  t.equal((await service.as(key.key).post('/v1/self/revoke')).status, 200, 'revoking is not limited by it');
});

t.test('self-service is sent to webhooks, and partners see no more of it than of other changes', async (t) => {
  const service = await startSelfService(t);
  const key = await partnerKey(service);
  const { admin } = service;
  const events = ['key.created', 'key.rotated', 'key.deleted'];
  const { body: ofPartner } = await admin.post('/v1/webhooks', {
    url: 'http://127.0.0.1:9/',
    events,
    partnerId: key.partnerId,
  });
  await service.as(key.key).post('/v1/self/rotate');
  await service.as(key.key).post('/v1/self/revoke');
  const { body: deliveries } = await admin.get(`/v1/webhooks/${ofPartner.id}/deliveries`);
  t.same(deliveries.data.map((delivery: Json) => delivery.event).sort(), ['key.created', 'key.deleted', 'key.rotated']);
});
