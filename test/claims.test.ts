import { expireClaims } from '../src/claims/jobs.ts';
import { mintToken } from '../src/crypto/token.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Client, type Json, type Reply, startService, type TestService } from './support/app.ts';
import { dbDump, dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

const events = async (admin: Client, count = 200): Promise<Json[]> =>
  (await admin.get(`/v1/history?limit=${count}`)).body.data;

/** Without a credential, like the holder of a code. */
async function redeem({ app }: Pick<TestService, 'app'>, code: unknown, headers = {}): Promise<Reply> {
  const response = await app.inject({ method: 'POST', url: '/v1/claims/redeem', payload: { code }, headers });
  return { status: response.statusCode, headers: response.headers, body: response.json() };
}

const runJob = ({ client, keyring, clock }: TestService) =>
  expireClaims({ transactor: { db: client.db, keyring, clock, onAppended: enqueueDeliveries } });

const verdictOf = async ({ verifier }: TestService, key: string): Promise<string> =>
  (await verifier.post('/v1/verify', { key, permission: 'read' })).body.code;

async function makePartner({ admin }: TestService, given = {}): Promise<Json> {
  const partner = { email: 'team@partner.example', permissions: ['read'], createKeys: false, ...given };
  return (await admin.post('/v1/partners', partner)).body;
}

/** The stored secrets of claims. */
const keptSecrets = ({ urls }: TestService) =>
  dbQuery(
    urls.superuser,
    'select id from claims where num_nonnulls(code_hash, sealed, sealed_keyring_id, mac, mac_keyring_id) > 0',
  );

t.test('a new key is handed over by a code, once, and no admin sees its plaintext', async (t) => {
  const service = await startService(t, { publicUrl: 'https://keys.example.com/latchkey' });
  const { admin } = service;
  const partner = await makePartner(service);
  t.same(partner.keys, []);
  const { body: organization } = await admin.get('/v1/organization');

  const created = await admin.post('/v1/claims', { newKey: { partnerId: partner.id, name: 'Billing' } });
  t.match(created.body, {
    status: 'pending',
    partnerId: partner.id,
    keyId: created.body.key.id,
    redeemedAt: null,
    redeemedFrom: null,
    key: { name: 'Billing', maskedKey: /^lk_k_…/, status: 'active', permission: 'read', partnerId: partner.id },
  });
  const { code, key, url, ...claim } = created.body;
  t.match([created.status, created.headers['location']], [201, `/v1/claims/${claim.id}`]);
  t.match(code, /^lk_c_/);
  t.equal(url, `https://keys.example.com/latchkey/claim#${code}`);
  t.equal(Date.parse(claim.expiresAt) - Date.parse(claim.createdAt), 259_200_000, 'three days by default');
  t.equal(key.key, undefined);
  t.same((await admin.get(`/v1/claims/${claim.id}`)).body, claim, 'the code is returned only once');
  const [second, first] = await events(admin, 2);
  t.match(first, { action: 'key.created', keyId: key.id, partnerId: partner.id });
  t.match(second, {
    action: 'claim.created',
    keyId: key.id,
    partnerId: partner.id,
    details: { claimId: claim.id, expiresAt: claim.expiresAt },
  });

  const redeemed = await redeem(service, code, { 'user-agent': 'Firefox' });
  t.equal(redeemed.status, 200);
  t.match(redeemed.headers, { 'cache-control': 'no-store', 'referrer-policy': 'no-referrer' });
  const { key: plaintext, ...others } = redeemed.body;
  t.same(others, {
    keyId: key.id,
    permission: 'read',
    organizationName: organization.name,
    partnerEmail: 'team@partner.example',
    expiresAt: null,
  });
  t.equal(await verdictOf(service, plaintext), 'valid');
  t.match((await events(admin, 1))[0], {
    action: 'key.claimed',
    actor: { type: 'claim', id: claim.id, email: null },
    keyId: key.id,
    partnerId: partner.id,
    request: { ip: '127.0.0.1', userAgent: 'Firefox' },
    details: { claimId: claim.id },
  });
  const { body: after } = await admin.get(`/v1/claims/${claim.id}`);
  t.match(after, { status: 'redeemed', redeemedFrom: '127.0.0.1', redeemedAt: /Z$/ });
  t.equal(
    (await admin.get(`/v1/history?actorId=${claim.id}`)).body.data.length,
    1,
    'history can be filtered by the claim',
  );
  t.equal((await redeem(service, code)).body.code, 'claim_gone');
  t.equal((await events(admin, 1))[0].action, 'key.claimed', 'a second try is not recorded');
  t.same(await keptSecrets(service), []);
});

t.test('a key of the default row has no partner, and without PUBLIC_URL there is no link', async (t) => {
  const service = await startService(t);
  const { body: claim } = await service.admin.post('/v1/claims', { newKey: {} });
  t.match(claim, { url: null, partnerId: null });
  t.match((await redeem(service, claim.code)).body, {
    partnerEmail: null,
    permission: 'read_write',
    keyId: claim.keyId,
  });
});

t.test('a rotation hands over the new key only; the old one keeps working for as long as asked', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: old } = await admin.post('/v1/keys', { name: 'Old', scopes: ['a'] });
  const { status, body: claim } = await admin.post('/v1/claims', {
    rotate: { keyId: old.id, expireOldAfterSeconds: 60 },
  });
  t.equal(status, 201);
  t.match(claim.key, { name: 'Old', scopes: ['a'], replacesKeyId: old.id });
  t.same(
    (await events(admin, 3)).map(({ action, keyId }) => [action, keyId]),
    [
      ['claim.created', claim.keyId],
      ['key.rotated', old.id],
      ['key.created', claim.keyId],
    ],
  );
  t.match((await redeem(service, claim.code)).body, { keyId: claim.keyId });
  t.equal(await verdictOf(service, old.key), 'valid');
  service.later(61_000);
  t.equal(await verdictOf(service, old.key), 'expired');
  t.equal(
    (await admin.post('/v1/claims', { rotate: { keyId: old.id } })).body.code,
    'conflict',
    'the rules of a rotation hold',
  );
});

t.test('an existing key is handed over unchanged, and a suspended or expired one as by a reveal', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const claim = async () => (await admin.post('/v1/claims', { keyId: key.id })).body;
  t.equal((await redeem(service, (await claim()).code)).body.key, key.key);
  await admin.post(`/v1/keys/${key.id}/suspend`);
  t.equal((await redeem(service, (await claim()).code)).body.key, key.key);
  await admin.post(`/v1/keys/${key.id}/resume`);
  await admin.patch(`/v1/keys/${key.id}`, { expiresAt: new Date(service.clock.nowMs() + 1_000).toISOString() });
  service.later(2_000);
  t.equal((await redeem(service, (await claim()).code)).body.key, key.key);
  t.equal((await events(admin)).filter(({ action }) => action === 'key.revealed').length, 0);
});

t.test('a claim for an existing key needs what a reveal needs', async (t) => {
  const limits = { callerLimit: 1_000, addressLimit: 1_000, revealLimit: 1 };
  const service = await startService(t, { limits });
  const { admin, operator, organizationId } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const inOrganization = { 'latchkey-organization': organizationId };
  t.match(await operator.post('/v1/claims', { keyId: key.id }, inOrganization), {
    status: 403,
    body: { code: 'forbidden', requiredRole: 'admin' },
  });
  const create = { role: 'admin', name: 'N', email: 'n@p.example', scopes: ['read', 'write'] };
  const writer = service.as((await admin.post('/v1/access-tokens', create)).body.token);
  t.match(await writer.post('/v1/claims', { keyId: key.id }), {
    status: 403,
    body: { code: 'scope_missing', requiredScope: 'reveal' },
  });
  t.equal((await writer.post('/v1/claims', { newKey: {} })).status, 201, 'a new key needs the scope write only');
  await admin.delete(`/v1/keys/${(await admin.get('/v1/claims')).body.data[0].keyId}`);
  t.equal((await operator.post('/v1/claims', { rotate: { keyId: key.id } }, inOrganization)).status, 201);
  t.equal((await admin.post('/v1/claims', { keyId: key.id })).status, 201);
  t.equal((await admin.post('/v1/claims', { keyId: key.id })).body.code, 'rate_limited', 'REVEAL_LIMIT counts it');
});

t.test('the body of a claim has exactly one subject, and errors name its members', async (t) => {
  const { admin } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const wrong: Array<[Json, string]> = [
    [{}, 'body'],
    [{ newKey: {}, keyId: key.id }, 'body'],
    [{ rotate: { keyId: key.id }, keyId: key.id }, 'body'],
    [{ rotate: {} }, 'body.rotate.keyId'],
    [{ keyId: 'nonsense' }, 'body.keyId'],
    [{ newKey: {}, ttlSeconds: 59 }, 'body.ttlSeconds'],
    [{ newKey: {}, ttlSeconds: 2_592_001 }, 'body.ttlSeconds'],
    [{ newKey: { expiresAt: '2020-01-01T00:00:00Z' } }, 'body.newKey.expiresAt'],
    [{ newKey: { permission: 'read' } }, 'body.newKey.permission'],
    [{ newKey: {}, code: 'x' }, 'body.code'],
  ];
  for (const [body, path] of wrong) {
    const reply = await admin.post('/v1/claims', body);
    t.match([reply.status, reply.body.code], [400, 'validation_failed'], path);
    t.ok(
      reply.body.errors.some((error: Json) => error.path === path),
      `${path} in ${JSON.stringify(reply.body.errors)}`,
    );
  }
  t.equal((await admin.post('/v1/claims', { newKey: { name: key.key } })).body.code, 'secret_in_text');
  t.equal((await admin.post('/v1/claims', { keyId: newId('key') })).body.code, 'not_found');
  await admin.post('/v1/claims', { newKey: {}, ttlSeconds: 60 });
  t.equal((await admin.post('/v1/claims', { newKey: {} })).body.code, 'row_full', 'the rules of a new key hold');
  await admin.delete(`/v1/keys/${key.id}`);
  t.equal((await admin.post('/v1/claims', { keyId: key.id })).body.code, 'already_deleted');
  t.equal((await admin.get('/v1/claims')).body.data.length, 1, 'a rejected request creates no claim');
});

t.test('a claim whose key would live too long names the member of its own body', async (t) => {
  const { admin } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  await admin.patch('/v1/organization', { maxKeyLifetimeSeconds: 3_600 });
  const wrong: Array<[Json, string]> = [
    [{ newKey: { expiresAt: null } }, 'body.newKey.expiresAt'],
    [{ newKey: { expiresAt: '2099-01-01T00:00:00Z' } }, 'body.newKey.expiresAt'],
    [{ rotate: { keyId: key.id, expireOldAfterSeconds: 7_200 } }, 'body.rotate.expireOldAfterSeconds'],
  ];
  for (const [body, path] of wrong) {
    t.match(await admin.post('/v1/claims', body), { status: 400, body: { errors: [{ path }] } }, path);
  }
  t.equal((await events(admin, 1))[0]?.action, 'organization.updated', 'nothing was created');
});

t.test('every code that does not work gets the same reply', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const claim = async () => {
    const partner = await makePartner(service, { email: `${Math.random()}@p.example` });
    return (await admin.post('/v1/claims', { newKey: { partnerId: partner.id }, ttlSeconds: 3_600 })).body;
  };
  const [used, cancelled, deleted, compromised, ofPartner, replaced, expired, swept] = [
    await claim(),
    await claim(),
    await claim(),
    await claim(),
    await claim(),
    await claim(),
    await claim(),
    await claim(),
  ];
  await redeem(service, used.code);
  t.match(await admin.delete(`/v1/claims/${cancelled.id}`), { status: 200, body: { status: 'cancelled' } });
  await admin.delete(`/v1/keys/${deleted.keyId}`);
  await admin.delete(`/v1/keys/${compromised.keyId}?reason=compromised`);
  await admin.delete(`/v1/partners/${ofPartner.partnerId}`);
  await admin.post('/v1/claims', { keyId: replaced.keyId, ttlSeconds: 2_592_000 });
  service.later(3_600_000);
  const expiredReply = await redeem(service, expired.code);
  t.equal(await runJob(service), 2);
  const restored = await admin.post(`/v1/keys/${deleted.keyId}/restore`);
  t.equal(restored.status, 200);

  const unknown = mintToken({ prefix: 'lk', kind: 'c', idSuffix: idSuffix(newId('claim')) }).reveal();
  const sameId = mintToken({ prefix: 'lk', kind: 'c', idSuffix: idSuffix(swept.id) }).reveal();
  const codes = {
    used: used.code,
    cancelled: cancelled.code,
    'of a deleted key, also after its restore': deleted.code,
    'of a compromised key': compromised.code,
    'of a deleted partner': ofPartner.code,
    replaced: replaced.code,
    'expired and swept': swept.code,
    unknown,
    'with the id of another code': sameId,
    malformed: 'nonsense',
    'a key instead of a code': (await admin.post('/v1/keys', {})).body.key,
    'an access token instead of a code': admin.token,
  };
  const withoutIds = ({ status, body }: Reply) => {
    const { requestId, traceId, ...others } = body;
    return { status, ...others };
  };
  const expected = withoutIds(expiredReply);
  t.match(expected, { status: 410, code: 'claim_gone' });
  for (const [what, code] of Object.entries(codes)) t.same(withoutIds(await redeem(service, code)), expected, what);
  t.equal((await redeem(service, 'x'.repeat(201))).status, 400);
  t.equal((await redeem(service, 1)).status, 400);
  t.equal((await keptSecrets(service)).length, 1, 'only the claim that replaced another one is pending');
});

t.test('a code is no credential, and no text or URL may contain one', async (t) => {
  const service = await startService(t);
  const { admin, app, verifier } = service;
  const { code } = (await admin.post('/v1/claims', { newKey: {} })).body;
  t.equal((await service.as(code).get('/v1/keys')).body.code, 'unauthorized');
  t.equal((await service.as(code).get('/v1/self')).status, 401);
  t.match((await verifier.post('/v1/verify', { key: code, permission: 'read' })).body, {
    valid: false,
    code: 'malformed',
  });
  t.equal((await admin.post('/v1/keys', { name: code })).body.code, 'secret_in_text');
  for (const url of [`/claim?code=${code}`, `/claim/${code}`, `/v1/claims?x=${code}`]) {
    const response = await app.inject({ url });
    t.equal(response.statusCode, 400, url);
    t.notMatch(response.body, code);
  }
  await app.inject({ url: '/livez', headers: { 'user-agent': code } });
  t.equal((await redeem(service, code)).status, 200);
});

t.test('of fifty redemptions at once in two replicas exactly one gets the key', async (t) => {
  const one = await startService(t);
  const two = await startService(t, { urls: one.urls, keyring: one.keyring });
  const { body: claim } = await one.admin.post('/v1/claims', { newKey: {} });
  const replies = await Promise.all(
    Array.from({ length: 50 }, (_, index) => redeem(index % 2 === 0 ? one : two, claim.code)),
  );
  const statuses = replies.map(({ status }) => status);
  t.equal(statuses.filter((status) => status === 200).length, 1);
  t.equal(statuses.filter((status) => status === 410).length, 49);
  t.equal((await events(one.admin)).filter(({ action }) => action === 'key.claimed').length, 1);
});

t.test('a redemption and the deletion of its key at once: the deleted key is not handed over later', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (let round = 0; round < 8; round++) {
    const { body: claim } = await admin.post('/v1/claims', { newKey: {} });
    const [redeemed, deleted] = await Promise.all([
      redeem(service, claim.code),
      admin.delete(`/v1/keys/${claim.keyId}`),
    ]);
    t.equal(deleted.status, 200);
    const recorded = (await events(admin)).filter(({ keyId }) => keyId === claim.keyId).map(({ action }) => action);
    t.same(
      recorded.toReversed().slice(2),
      redeemed.status === 200 ? ['key.claimed', 'key.deleted'] : ['key.deleted', 'claim.cancelled'],
    );
  }
});

t.test('failed tries count against ADDRESS_LIMIT, and a code that works is still accepted', async (t) => {
  const service = await startService(t, { limits: { callerLimit: 1_000, addressLimit: 3, revealLimit: 1 } });
  const { body: claim } = await service.admin.post('/v1/claims', { newKey: {} });
  for (let count = 0; count < 3; count++) t.equal((await redeem(service, 'nonsense')).status, 410);
  const limited = await redeem(service, 'nonsense');
  t.match([limited.status, limited.body.code], [429, 'rate_limited']);
  t.match(limited.headers['retry-after'], /^\d+$/);
  t.equal((await service.as('nonsense').get('/v1/keys')).status, 429, 'the count is shared with rejected tokens');
  t.equal((await redeem(service, claim.code)).status, 200);
});

t.test('an Idempotency-Key does not give the key a second time', async (t) => {
  const service = await startService(t);
  const { body: claim } = await service.admin.post('/v1/claims', { newKey: {} });
  const headers = { 'idempotency-key': 'retry' };
  t.equal((await redeem(service, claim.code, headers)).status, 200);
  t.equal((await redeem(service, claim.code, headers)).status, 410);
});

t.test('a claim expires by the clock, and the job records it once and deletes its secrets', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: first } = await admin.post('/v1/claims', { newKey: {}, ttlSeconds: 60 });
  await admin.post('/v1/claims', { newKey: {}, ttlSeconds: 61 });
  service.later(60_000);
  t.equal((await admin.get(`/v1/claims/${first.id}`)).body.status, 'expired');
  t.equal((await redeem(service, first.code)).status, 410);
  t.equal((await admin.delete(`/v1/claims/${first.id}`)).body.code, 'conflict');
  const [one, two] = await Promise.all([runJob(service), runJob(service)]);
  t.equal(one + two, 1, 'two jobs at once end it once');
  t.equal(await runJob(service), 0);
  const expired = (await events(admin)).filter(({ action }) => action === 'claim.expired');
  t.equal(expired.length, 1);
  t.match(expired[0], {
    actor: { type: 'system', id: 'expire_claims' },
    keyId: first.keyId,
    request: null,
    details: { claimId: first.id, expiresAt: first.expiresAt },
  });
  t.match((await admin.get(`/v1/claims/${first.id}`)).body, { status: 'expired', redeemedAt: null });
  t.equal((await keptSecrets(service)).length, 1);
});

t.test('a second claim of a key cancels the first, or records its expiry', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: first } = await admin.post('/v1/claims', { newKey: {}, ttlSeconds: 60 });
  const { body: second } = await admin.post('/v1/claims', { keyId: first.keyId, ttlSeconds: 60 });
  t.match((await events(admin, 2))[1], {
    action: 'claim.cancelled',
    keyId: first.keyId,
    details: { claimId: first.id, reason: 'replaced' },
  });
  service.later(61_000);
  const { body: third } = await admin.post('/v1/claims', { keyId: first.keyId });
  t.match((await events(admin, 2))[1], { action: 'claim.expired', details: { claimId: second.id } });
  t.equal(await runJob(service), 0, 'the expiry is recorded once');
  t.equal((await redeem(service, first.code)).status, 410);
  t.equal((await redeem(service, third.code)).status, 200);
});

t.test('cancelling leaves the key, and only a pending claim can be cancelled', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: claim } = await admin.post('/v1/claims', { keyId: key.id });
  t.equal((await admin.delete(`/v1/claims/${claim.id}`)).status, 200);
  t.match((await events(admin, 1))[0], {
    action: 'claim.cancelled',
    actor: { type: 'admin' },
    keyId: key.id,
    details: { claimId: claim.id, reason: 'requested' },
  });
  t.equal(await verdictOf(service, key.key), 'valid');
  t.same(await keptSecrets(service), []);
  t.match((await admin.delete(`/v1/claims/${claim.id}`)).body, { code: 'conflict', detail: /cancelled/ });
  const { body: used } = await admin.post('/v1/claims', { keyId: key.id });
  await redeem(service, used.code);
  t.match((await admin.delete(`/v1/claims/${used.id}`)).body, { code: 'conflict', detail: /redeemed/ });
});

t.test('the end of a key ends its claim; a rotation of the key does not', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const partner = await makePartner(service, { permissions: ['read', 'write'] });
  const claim = async (permission: string) =>
    (await admin.post('/v1/claims', { newKey: { partnerId: partner.id, permission } })).body;
  const [read, write] = [await claim('read'), await claim('write')];
  const rotated = await admin.post(`/v1/keys/${read.keyId}/rotate`, { expireOldAfterSeconds: 3_600 });
  t.equal(rotated.status, 201);
  t.equal((await admin.get(`/v1/claims/${read.id}`)).body.status, 'pending');
  await admin.patch(`/v1/partners/${partner.id}`, { permissions: ['read'] });
  t.match((await events(admin, 1))[0], {
    action: 'claim.cancelled',
    keyId: write.keyId,
    partnerId: partner.id,
    details: { claimId: write.id, reason: 'key_deleted' },
  });
  await admin.delete(`/v1/partners/${partner.id}`);
  t.equal((await admin.get(`/v1/claims/${read.id}`)).body.status, 'cancelled');
  t.same(await keptSecrets(service), []);
  await admin.post(`/v1/partners/${partner.id}/restore`);
  t.equal((await redeem(service, read.code)).status, 410, 'a restored key has no claim');
});

t.test('claims are listed by status, key and partner, page by page', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const partner = await makePartner(service);
  const ids: Record<string, string> = {};
  const add = async (status: string, body: Json) => {
    const { body: claim } = await admin.post('/v1/claims', body);
    ids[status] = claim.id;
    return claim;
  };
  const redeemed = await add('redeemed', { newKey: { partnerId: partner.id } });
  await redeem(service, redeemed.code);
  const cancelled = await add('cancelled', { newKey: { partnerId: partner.id } });
  await admin.delete(`/v1/claims/${cancelled.id}`);
  await add('expired', { newKey: {}, ttlSeconds: 60 });
  service.later(61_000);
  const pending = await add('pending', { keyId: cancelled.keyId });
  const idsOf = async (query: string) => (await admin.get(`/v1/claims${query}`)).body.data.map(({ id }: Json) => id);
  for (const when of ['before', 'after']) {
    for (const [status, id] of Object.entries(ids))
      t.same(await idsOf(`?status=${status}`), [id], `${status} ${when} the job`);
    await runJob(service);
  }
  t.same(await idsOf(`?keyId=${cancelled.keyId}`), [pending.id, cancelled.id]);
  t.same(await idsOf(`?partnerId=${partner.id}`), [pending.id, cancelled.id, redeemed.id]);
  t.same(await idsOf(`?partnerId=${partner.id}&status=pending`), [pending.id]);
  const first = (await admin.get('/v1/claims?limit=3')).body;
  t.equal(first.data.length, 3);
  const rest = (await admin.get(`/v1/claims?limit=3&cursor=${first.nextCursor}`)).body;
  t.same(
    [...first.data, ...rest.data].map(({ id }: Json) => id),
    await idsOf(''),
  );
  t.equal((await admin.get(`/v1/claims?status=pending&cursor=${first.nextCursor}`)).body.code, 'cursor_invalid');
  t.notMatch(JSON.stringify(first), /lk_c_/);
  t.equal((await admin.get('/v1/claims?status=other')).status, 400);
});

t.test('with keyReveal never the plaintext is stored until the claim ends, and then nowhere', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const { body: early } = await admin.post('/v1/claims', { newKey: { name: 'Early' } });
  await admin.patch('/v1/organization', { keyReveal: 'never' });
  const { body: late } = await admin.post('/v1/claims', { newKey: { name: 'Late' } });
  t.equal((await admin.post('/v1/claims', { keyId: late.keyId })).body.code, 'reveal_disabled');
  t.equal((await admin.post(`/v1/keys/${late.keyId}/reveal`)).body.code, 'reveal_disabled');
  t.equal((await keptSecrets(service)).length, 2);
  for (const claim of [early, late]) t.equal((await redeem(service, claim.code)).status, 200);
  await admin.delete(`/v1/keys/${early.keyId}?reason=unused`);
  const { body: third } = await admin.post('/v1/claims', { rotate: { keyId: late.keyId }, ttlSeconds: 60 });
  t.equal((await keptSecrets(service)).length, 1);
  service.later(61_000);
  t.equal(await runJob(service), 1);
  t.equal(third.status, 'pending');
  const sealed = await dbQuery(
    urls.superuser,
    'select id from api_keys where sealed is not null union select id from claims where sealed is not null',
  );
  t.same(sealed, []);
});

t.test('a partner without keys is created without plaintexts, and its reply is replayed for a day', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  await admin.patch('/v1/organization', { keyReveal: 'never' });
  const body = { email: 'p@p.example', permissions: ['read', 'write'], createKeys: false };
  const headers = { 'idempotency-key': 'one' };
  const first = await admin.post('/v1/partners', body, headers);
  t.match(first, { status: 201, body: { keys: [], permissions: ['read', 'write'] } });
  t.same((await events(admin, 1))[0].action, 'partner.created');
  service.later(3_600_000);
  t.match(await admin.post('/v1/partners', body, headers), { status: 201, body: first.body });
  t.equal((await admin.get(`/v1/keys?partnerId=${first.body.id}`)).body.data.length, 0);
  t.equal((await admin.post('/v1/partners', { ...body, email: 'q@p.example', createKeys: true })).body.keys.length, 2);
});

t.test('a webhook is notified of claims, without the code', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const partner = await makePartner(service);
  const endpoint = {
    url: 'http://127.0.0.1:9/',
    events: ['claim.created', 'key.claimed', 'claim.cancelled', 'claim.expired'],
  };
  t.equal((await admin.post('/v1/webhooks', endpoint)).status, 201);
  t.equal((await admin.post('/v1/webhooks', { ...endpoint, partnerId: partner.id })).status, 201);
  const { body: claim } = await admin.post('/v1/claims', { newKey: { partnerId: partner.id } });
  await redeem(service, claim.code);
  const sent = await dbQuery(
    urls.superuser,
    `select partner_id is null as all, array_agg(action order by sequence) as actions
     from webhook_deliveries join webhook_endpoints on webhook_endpoints.id = endpoint_id group by 1 order by 1`,
  );
  const actions = ['claim.created', 'key.claimed'];
  t.same(sent, [
    { all: false, actions },
    { all: true, actions },
  ]);
  t.notMatch(await dbDump(urls.superuser), claim.code);
});

t.test('the reply with the code is replayed for 15 minutes, then 409 names claim and key', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const create = () => admin.post('/v1/claims', { newKey: {} }, { 'idempotency-key': 'one' });
  const first = await create();
  t.match(await create(), { status: 201, headers: { 'idempotent-replayed': 'true' }, body: first.body });
  service.later(15 * 60_000);
  t.match(await create(), { status: 409, body: { code: 'reply_gone', created: [first.body.id, first.body.keyId] } });
  t.equal((await redeem(service, first.body.code)).status, 200, 'the code still works');
});
