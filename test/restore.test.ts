import { type RestoreMethod, requireOpenWindow } from '../src/domain/restore-window.ts';
import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { dbQuery, roleOf } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

const day = 86_400_000;

const events = async (admin: Client, count = 200): Promise<Json[]> =>
  (await admin.get(`/v1/history?limit=${count}`)).body.data;

const verdictOf = async ({ verifier }: TestService, { key, permission }: Json): Promise<string> =>
  (await verifier.post('/v1/verify', { key, permission: permission === 'write' ? 'write' : 'read' })).body.code;

t.test('a restored key is as it was before, and works at once', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const settings = {
    name: 'Export',
    metadata: { team: 'a' },
    allowedIps: ['203.0.113.0/24'],
    rateLimit: { requests: 5, windowSeconds: 60 },
  };
  const { body: created } = await admin.post('/v1/keys', settings);
  const { body: before } = await admin.get(`/v1/keys/${created.id}`);
  const { body: deleted } = await admin.delete(`/v1/keys/${created.id}?reason=unused`);
  t.equal(await verdictOf(service, created), 'deleted');

  const { status, body } = await admin.post(`/v1/keys/${created.id}/restore`);
  t.equal(status, 200);
  t.same(body, before);
  t.same((await admin.get(`/v1/keys/${created.id}`)).body, before);
  const input = { key: created.key, permission: 'read', ip: '203.0.113.7' };
  t.match((await service.verifier.post('/v1/verify', input)).body, { valid: true, metadata: { team: 'a' } });
  t.same(
    (await admin.post(`/v1/keys/${created.id}/reveal`)).body,
    { key: created.key },
    'the sealed plaintext is restored',
  );
  // An event for a use of the deleted key may be in between.
  const restoring = (await events(admin, 3)).find(({ action }) => action === 'key.restored');
  t.match(restoring, {
    keyId: created.id,
    actor: { type: 'admin', email: 'ada@example.com' },
    details: { deletedAt: deleted.deletedAt, deleteReason: 'unused', recoveryRequestId: null },
  });

  const again = await admin.post(`/v1/keys/${created.id}/restore`);
  t.match(again, { status: 409, body: { code: 'conflict' } });
  t.match((await admin.delete(`/v1/keys/${created.id}`)).body, { status: 'deleted' }, 'it can be deleted again');
});

t.test('another replica accepts a restored key at once', async (t) => {
  const service = await startService(t);
  const other = await startService(t, { urls: service.urls, keyring: service.keyring });
  const { body: forAll } = await other.operator.post('/v1/access-tokens', {
    role: 'verifier',
    scopes: ['read'],
    name: 'For all',
  });
  const verdictOnReplica = async (key: Json) =>
    (await other.as(forAll.token).post('/v1/verify', { key: key.key, permission: 'read' })).body.code;
  const { body: partner } = await service.admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  t.equal(await verdictOnReplica(key), 'valid');
  for (const [restore, code] of [
    [() => service.admin.delete(`/v1/keys/${key.id}`), 'deleted'],
    [() => service.admin.post(`/v1/keys/${key.id}/restore`), 'valid'],
    [() => service.admin.delete(`/v1/partners/${partner.id}`), 'deleted'],
    [() => service.admin.post(`/v1/partners/${partner.id}/restore`), 'valid'],
    [() => service.admin.post(`/v1/keys/${key.id}/suspend`), 'suspended'],
    [() => service.admin.post(`/v1/keys/${key.id}/resume`), 'valid'],
    [() => service.admin.post(`/v1/partners/${partner.id}/suspend`), 'partner_suspended'],
    [() => service.admin.post(`/v1/partners/${partner.id}/resume`), 'valid'],
  ] as const) {
    t.equal((await restore()).status, 200);
    await eventually(async () => (await verdictOnReplica(key)) === code, 1_000);
  }
});

t.test('admins and operators can restore within their windows', async (t) => {
  const deletedAt = new Date('2026-06-01T12:00:00.000Z');
  const windows = { undoWindowSeconds: 100, retentionSeconds: 1_000 };
  const table: Array<[method: RestoreMethod, afterMs: number, refusal: RegExp | null]> = [
    ['undo', 0, null],
    ['undo', 99_999, null],
    ['undo', 100_000, /until 2026-06-01T12:01:40.000Z.*until 2026-06-01T12:16:40.000Z.*recovery request/],
    ['undo', 1_000_000, /could be restored until 2026-06-01T12:16:40.000Z/],
    ['recovery', 0, null],
    ['recovery', 999_999, null],
    ['recovery', 1_000_000, /could be restored until/],
  ];
  for (const [method, afterMs, refusal] of table) {
    const now = new Date(deletedAt.getTime() + afterMs);
    const restore = () => requireOpenWindow('Key key_x', deletedAt, { method, windows, now });
    const what = `${method} after ${afterMs} ms`;
    if (refusal === null) t.doesNotThrow(restore, what);
    else t.throws(restore, { code: 'not_restorable', message: refusal }, what);
  }
});

t.test('after the undo window the error names recovery requests; a compromised key stays deleted', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: leaked } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${key.id}`);
  await admin.delete(`/v1/keys/${leaked.id}?reason=compromised`);
  const refused = await admin.post(`/v1/keys/${leaked.id}/restore`);
  t.match(refused, { status: 409, body: { code: 'not_restorable', detail: /compromised/ } });

  const count = (await events(admin)).length;
  service.later(day);
  const tooLateRestore = await admin.post(`/v1/keys/${key.id}/restore`);
  t.match(tooLateRestore, { status: 409, body: { code: 'not_restorable', detail: /POST \/v1\/recovery-requests/ } });
  service.later(29 * day);
  const tooLate = await admin.post(`/v1/keys/${key.id}/restore`);
  t.match(tooLate, { status: 409, body: { code: 'not_restorable' } });
  t.notMatch(tooLate.body.detail, /recovery/);
  t.equal(await verdictOf(service, key), 'deleted');
  t.equal((await admin.post('/v1/keys/key_01k9s3v5wqe8n8x4r2m6t7yb0c/restore')).body.code, 'not_found');
  t.equal((await events(admin)).length, count, 'rejected restores are not recorded');
});

t.test('a restored key takes any free place of its row, and a full row rejects it', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const make = async () => (await admin.post('/v1/keys', {})).body;
  const [first, second] = [await make(), await make()];
  await admin.delete(`/v1/keys/${first.id}`);
  const third = await make();
  const { body: before } = await admin.get(`/v1/keys/${first.id}`);
  const count = (await events(admin)).length;
  const full = await admin.post(`/v1/keys/${first.id}/restore`);
  t.match(full, { status: 409, body: { code: 'row_full' } });
  t.same(full.body.keyIds, [second.id, third.id]);
  t.same((await admin.get(`/v1/keys/${first.id}`)).body, before);
  t.equal((await events(admin)).length, count);

  await admin.delete(`/v1/keys/${second.id}`);
  t.equal((await admin.post(`/v1/keys/${first.id}/restore`)).status, 200, 'its own place is taken, the other is free');
  t.equal(await verdictOf(service, first), 'valid');
  t.equal((await admin.get('/v1/rows')).body.data[0].freePlaces, 0);
  t.match((await events(admin, 1))[0], { action: 'key.restored', keyId: first.id });
});

t.test('a suspended or expired key is restored as suspended or expired', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const expiresAt = new Date(Date.now() + 3_600_000).toISOString();
  const { body: expiring } = await admin.post('/v1/keys', { expiresAt });
  const { body: suspended } = await admin.post('/v1/keys', {});
  await admin.post(`/v1/keys/${suspended.id}/suspend`);
  for (const key of [expiring, suspended]) await admin.delete(`/v1/keys/${key.id}`);
  service.later(3_600_000);
  t.equal((await admin.post(`/v1/keys/${expiring.id}/restore`)).body.status, 'expired');
  t.equal((await admin.post(`/v1/keys/${suspended.id}/restore`)).body.status, 'suspended');
  t.equal(await verdictOf(service, expiring), 'expired');
  t.equal(await verdictOf(service, suspended), 'suspended');
});

t.test('a key is only restored if its owner may have it', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const [readKey, writeKey] = partner.keys;
  const restore = (key: Json) => admin.post(`/v1/keys/${key.id}/restore`);

  await admin.patch(`/v1/partners/${partner.id}`, { permissions: ['read'] });
  t.match(await restore(writeKey), {
    status: 409,
    body: { code: 'not_restorable', detail: /has the permission read/ },
  });
  await admin.patch(`/v1/partners/${partner.id}`, { permissions: ['read', 'write'] });
  t.equal((await restore(writeKey)).status, 200, 'with the permission added again, the key can be restored');
  t.match((await events(admin, 1))[0], { action: 'key.restored', details: { deleteReason: 'permission_removed' } });

  await admin.delete(`/v1/partners/${partner.id}`);
  const orphan = await restore(readKey);
  t.match(orphan, { status: 409, body: { code: 'not_restorable', detail: new RegExp(partner.id) } });
  t.equal(await verdictOf(service, readKey), 'deleted');
});

t.test('a partner is restored with exactly the keys that were deleted with it', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const [readKey, writeKey] = partner.keys;
  const add = async (permission: string) =>
    (await admin.post('/v1/keys', { partnerId: partner.id, permission })).body as Json;
  const deletedBefore = await add('read');
  await admin.delete(`/v1/keys/${deletedBefore.id}`);
  const secondRead = await add('read');
  const leakedLater = await add('write');
  const { body: before } = await admin.get(`/v1/partners/${partner.id}`);
  const { body: deleted } = await admin.delete(`/v1/partners/${partner.id}`);
  await admin.delete(`/v1/keys/${leakedLater.id}?reason=compromised`);

  const { status, body } = await admin.post(`/v1/partners/${partner.id}/restore`);
  t.equal(status, 200);
  t.same(body, before);
  for (const key of [readKey, secondRead, writeKey]) t.equal(await verdictOf(service, key), 'valid');
  for (const key of [deletedBefore, leakedLater]) t.equal(await verdictOf(service, key), 'deleted');
  const [...newest] = await events(admin, 4);
  t.match(newest.pop(), {
    action: 'partner.restored',
    partnerId: partner.id,
    details: { email: 'p@p.example', deletedAt: deleted.deletedAt, recoveryRequestId: null },
  });
  t.same(newest.map(({ action, keyId }) => `${action} ${keyId}`).sort(), [
    ...[readKey.id, secondRead.id, writeKey.id].map((id) => `key.restored ${id}`).sort(),
  ]);
  t.equal((await admin.post(`/v1/keys/${deletedBefore.id}/restore`)).body.code, 'row_full', 'its place is occupied');
  t.match(await admin.post(`/v1/partners/${partner.id}/restore`), { status: 409, body: { code: 'conflict' } });

  await admin.delete(`/v1/partners/${partner.id}`);
  service.later(day);
  const tooLateRestore = await admin.post(`/v1/partners/${partner.id}/restore`);
  t.match(tooLateRestore, { status: 409, body: { code: 'not_restorable', detail: /recovery request/ } });
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('a partner whose address is in use stays deleted, with all its keys', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'P@p.example', permissions: ['read', 'write'] });
  await admin.delete(`/v1/partners/${partner.id}`);
  const { body: newPartner } = await admin.post('/v1/partners', { email: 'p@P.example', permissions: ['read'] });
  const count = (await events(admin)).length;
  const refused = await admin.post(`/v1/partners/${partner.id}/restore`);
  t.match(refused, { status: 409, body: { code: 'partner_exists', partnerId: newPartner.id } });
  for (const key of partner.keys) t.equal(await verdictOf(service, key), 'deleted');
  t.equal((await events(admin)).length, count);
  await admin.patch(`/v1/partners/${newPartner.id}`, { email: 'new@p.example' });
  t.equal((await admin.post(`/v1/partners/${partner.id}/restore`)).status, 200);
  for (const key of partner.keys) t.equal(await verdictOf(service, key), 'valid');
  t.match((await events(admin, 3))[2], { action: 'partner.restored', partnerId: partner.id });
});

t.test('a partner whose externalId is in use stays deleted, with all its keys', async (t) => {
  const service = await startService(t);
  const { admin, operator, organizationId } = service;
  const input = { email: 'p@p.example', permissions: ['read', 'write'], externalId: 'customer-4711' };
  const { body: partner } = await admin.post('/v1/partners', input);
  await admin.delete(`/v1/partners/${partner.id}`);
  const { status, body: newPartner } = await admin.post('/v1/partners', { ...input, email: 'q@p.example' });
  t.equal(status, 201, "a deleted partner's externalId is free");
  const count = (await events(admin)).length;
  const refused = { status: 409, body: { code: 'external_id_exists', partnerId: newPartner.id } };
  t.match(await admin.post(`/v1/partners/${partner.id}/restore`), refused);
  t.equal((await events(admin)).length, count);
  const subject = { partnerId: partner.id, details: 'Please' };
  const { body: recovery } = await admin.post('/v1/recovery-requests', subject);
  const named = { 'latchkey-organization': organizationId };
  t.match(await operator.post(`/v1/recovery-requests/${recovery.id}/approve`, {}, named), refused);
  for (const key of partner.keys) t.equal(await verdictOf(service, key), 'deleted');
  await admin.patch(`/v1/partners/${newPartner.id}`, { externalId: null });
  t.match(await operator.post(`/v1/recovery-requests/${recovery.id}/approve`, {}, named), { status: 200 });
  for (const key of partner.keys) t.equal(await verdictOf(service, key), 'valid');
  t.equal((await admin.get(`/v1/partners/${partner.id}`)).body.externalId, 'customer-4711');
  t.match((await events(admin, 3))[2], { action: 'partner.restored', partnerId: partner.id });
});

t.test('a restore that cannot be recorded does not take place', async (t) => {
  const service = await startService(t);
  const { admin, operator, urls } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: deletedKey } = await admin.post('/v1/keys', {});
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  await admin.delete(`/v1/keys/${deletedKey.id}`);
  await admin.delete(`/v1/partners/${partner.id}`);
  const { body: request } = await admin.post('/v1/recovery-requests', { keyId: deletedKey.id, details: 'Please' });
  const shown = async () => [
    (await admin.get('/v1/keys?status=deleted')).body,
    (await admin.get('/v1/keys')).body,
    (await admin.get('/v1/partners?includeDeleted=true')).body,
    (await admin.get('/v1/recovery-requests')).body,
    (await admin.get('/v1/history?limit=200')).body,
  ];
  const before = await shown();
  const role = roleOf(urls.app);
  await dbQuery(urls.owner, `revoke execute on function history_append(text, text) from ${role}`);
  for (const restore of [
    () => admin.post(`/v1/keys/${deletedKey.id}/restore`),
    () => admin.post(`/v1/keys/${key.id}/suspend`),
    () => admin.post(`/v1/keys/${key.id}/rotate`, { expireOldAfterSeconds: 0 }),
    () => admin.post(`/v1/partners/${partner.id}/restore`),
    () => admin.post('/v1/recovery-requests', { partnerId: partner.id, details: 'Please' }),
    () => operator.post(`/v1/recovery-requests/${request.id}/approve`),
    () => operator.post(`/v1/recovery-requests/${request.id}/decline`, { note: 'No' }),
  ]) {
    t.match(await restore(), { status: 503, body: { code: 'unavailable' } }, restore.toString());
  }
  await dbQuery(urls.owner, `grant execute on function history_append(text, text) to ${role}`);
  t.same(await shown(), before);
});
