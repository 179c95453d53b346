import type { Test } from 'tap';
import { announceExpiries, forgetExpiryNotices } from '../src/expiry-notices/jobs.ts';
import { purgeDeletedKeys } from '../src/keys/purge-job.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

const hour = 3_600_000;
const day = 24 * hour;
const retentionSeconds = 2_592_000;

const events = async (admin: Client, query = ''): Promise<Json[]> =>
  (await admin.get(`/v1/history?limit=200${query}`)).body.data;

/** The service's database and clock, for jobs. */
async function jobsOf(t: Test) {
  const service = await startService(t);
  const transactor = {
    db: service.client.db,
    keyring: service.keyring,
    clock: service.clock,
    onAppended: enqueueDeliveries,
    onChanged: (ids: Iterable<string>) => service.verification.records.invalidate(ids),
  };
  return {
    service,
    transactor,
    later: service.later,
  };
}

const secretsOf = ({ urls }: TestService, keyId: string) =>
  dbQuery(
    urls.superuser,
    `select num_nonnulls(tag, tag_keyring_id, argon2id_hash, mac, mac_keyring_id, sealed, sealed_keyring_id) as left_over,
       purged_at is not null as purged from api_keys where id = $1`,
    [keyId],
  );

t.test('keys are purged once their retention has ended, and no others', async (t) => {
  const { service, transactor, later } = await jobsOf(t);
  const { admin, verifier } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const [readKey, writeKey] = partner.keys;
  const { body: leaked } = await admin.post('/v1/keys', {});
  const { body: live } = await admin.post('/v1/keys', {});
  const { body: deleted } = await admin.delete(`/v1/keys/${readKey.id}?reason=unused`);
  await admin.delete(`/v1/keys/${leaked.id}?reason=compromised`);
  later(day);
  await admin.delete(`/v1/keys/${writeKey.id}`);
  const verdict = async (key: Json) =>
    (await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code as string;

  later(29 * day - hour);
  t.equal(await purgeDeletedKeys({ transactor, retentionSeconds }), 0, 'an hour before the end of the retention');
  t.same([await verdict(readKey), await verdict(leaked)], ['deleted', 'deleted']);
  later(hour);
  t.equal(await purgeDeletedKeys({ transactor, retentionSeconds }), 2);
  t.equal(await purgeDeletedKeys({ transactor, retentionSeconds }), 0, 'once');
  for (const { id } of [readKey, leaked]) t.same(await secretsOf(service, id), [{ left_over: 0, purged: true }]);
  for (const { id } of [writeKey, live]) t.same(await secretsOf(service, id), [{ left_over: 7, purged: false }]);
  t.same([await verdict(readKey), await verdict(leaked)], ['not_found', 'not_found'], 'purged keys are unknown');
  t.same([await verdict(writeKey), await verdict(live)], ['deleted', 'valid']);

  const purged = await events(admin, '&action=key.purged');
  t.equal(purged.length, 2);
  t.match(
    purged.find((event) => event.keyId === readKey.id),
    {
      partnerId: partner.id,
      actor: { type: 'system', id: 'purge_keys' },
      request: null,
      details: { deletedAt: deleted.deletedAt, deleteReason: 'unused' },
    },
  );
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('only history and usage of a purged key remain', async (t) => {
  const { service, transactor, later } = await jobsOf(t);
  const { admin, verifier } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await admin.post(`/v1/keys/${key.id}/reveal`, { reason: 'look' });
  await service.verification.usage.flush();
  const to = new Date(Date.now() + hour).toISOString();
  await admin.delete(`/v1/keys/${key.id}`);
  later(30 * day);
  await purgeDeletedKeys({ transactor, retentionSeconds });

  const path = `/v1/keys/${key.id}`;
  const { body: unknown } = await admin.get('/v1/keys/key_01k9s3v5wqe8n8x4r2m6t7yb0c');
  for (const send of [
    () => admin.get(path),
    () => admin.patch(path, { name: 'x' }),
    () => admin.delete(path),
    () => admin.delete(`${path}?reason=compromised`),
    () => admin.post(`${path}/reveal`),
    () => admin.post(`${path}/rotate`),
    () => admin.post(`${path}/suspend`),
    () => admin.post(`${path}/resume`),
    () => admin.post(`${path}/restore`),
    () => admin.post('/v1/recovery-requests', { keyId: key.id, details: 'Please' }),
  ]) {
    const { status, body } = await send();
    t.same([status, body.detail], [404, unknown.detail], send.toString());
  }
  for (const query of ['', '&includeDeleted=true', '&status=deleted']) {
    t.same((await admin.get(`/v1/keys?partnerId=${partner.id}${query}`)).body.data, []);
  }
  t.equal((await admin.post('/v1/keys', { partnerId: partner.id })).status, 201);

  t.same(
    (await admin.get(`${path}/history`)).body.data.map((event: Json) => event.action),
    ['key.purged', 'key.deleted', 'key.revealed', 'key.created'],
  );
  t.match((await admin.get(`${path}/viewers`)).body.data, [{ times: 1, looks: [{ reason: 'look' }] }]);
  t.match((await admin.get(`${path}/usage?to=${to}`)).body.total, { allowed: 1 });
  const { body: ofPartner } = await admin.get(`/v1/partners/${partner.id}/usage?to=${to}`);
  t.match(ofPartner, { total: { allowed: 1 }, lastUsedAt: /^20/ });
});

t.test('an open recovery request does not prevent the purge, and its approval reports the purge', async (t) => {
  const { service, transactor, later } = await jobsOf(t);
  const { admin, operator } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  await admin.delete(`/v1/keys/${key.id}`);
  await admin.delete(`/v1/partners/${partner.id}`);
  const requests = [];
  for (const subject of [{ keyId: key.id }, { partnerId: partner.id }]) {
    requests.push((await admin.post('/v1/recovery-requests', { ...subject, details: 'Please' })).body.id);
  }
  later(day);
  t.equal(await purgeDeletedKeys({ transactor, retentionSeconds: 3_600 }), 2, 'after the retention was shortened');
  for (const id of requests) {
    const { status, body } = await operator.post(`/v1/recovery-requests/${id}/approve`);
    t.same([status, body.code], [409, 'not_restorable']);
    t.match(body.detail, /purged/);
    t.equal((await operator.post(`/v1/recovery-requests/${id}/decline`, { note: 'Too late' })).status, 200);
  }
  t.equal((await admin.get(`/v1/partners/${partner.id}`)).body.status, 'deleted', 'not even in part');
  t.match((await events(admin))[0], { action: 'recovery.declined', partnerId: partner.id });
});

t.test('many keys are purged in several transactions, in each organization', async (t) => {
  const { service, transactor, later } = await jobsOf(t);
  const { admin, operator, urls, organizationId } = service;
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  for (const headers of [{ 'latchkey-organization': organizationId }, inOther]) {
    const { body: key } = await operator.post('/v1/keys', {}, headers);
    await operator.delete(`/v1/keys/${key.id}`, headers);
  }
  await dbQuery(
    urls.superuser,
    `insert into api_keys (id, organization_id, permission, slot, tag, tag_keyring_id, mac, mac_keyring_id, last_four, allowed_ips, metadata,
       created_at, created_by, deleted_at, delete_reason)
     select 'key_0' || to_char(n, 'FM0000000000000000000000000'), $1, 'read_write', 1, decode(repeat('00', 32), 'hex'),
       'k', 'none', 'k', 'abcd', '{}', '{}', now(), $2, now(), 'other' from generate_series(1, 249) as n`,
    [organizationId, JSON.stringify({ type: 'system', id: 'test', name: 'test', email: null })],
  );
  later(30 * day);
  t.equal(await purgeDeletedKeys({ transactor, retentionSeconds }), 251);
  const rows = await dbQuery(
    urls.superuser,
    "select chain, count(*)::int as events from history where action = 'key.purged' group by 1",
  );
  const counts = Object.fromEntries(rows.map(({ chain, events }) => [chain, events]));
  t.same(counts, { [organizationId]: 250, [other.id]: 1 });
  t.match((await admin.get('/v1/history/verify')).body, { firstBadSequence: null, flaws: [] });
  t.match((await operator.get('/v1/history/verify', inOther)).body, { valid: true });
});

t.test('the database rejects a live key without secrets and a purged key with secrets', async (t) => {
  const service = await startService(t);
  const { body: key } = await service.admin.post('/v1/keys', {});
  const attempt = (assignment: string) =>
    dbQuery(service.urls.superuser, `update api_keys set ${assignment} where id = $1`, [key.id]);
  const deleted = "deleted_at = now(), delete_reason = 'other'";
  const wiped =
    'tag = null, tag_keyring_id = null, argon2id_hash = null, mac = null, mac_keyring_id = null, sealed = null, sealed_keyring_id = null';
  for (const assignment of [
    'purged_at = now()',
    `purged_at = now(), ${wiped}`,
    `purged_at = now(), ${deleted}`,
    'tag = null',
    'tag = null, tag_keyring_id = null',
    `${deleted}, tag = null, tag_keyring_id = null`,
    `${deleted}, purged_at = now(), tag = null, tag_keyring_id = null, argon2id_hash = null`,
    'argon2id_hash = null',
  ]) {
    await t.rejects(attempt(assignment), { code: '23514' }, assignment);
  }
  await attempt(`${deleted}, purged_at = now(), ${wiped}`);
  await t.rejects(attempt('deleted_at = null, delete_reason = null'), { code: '23514' });
});

t.test('a purge that cannot be recorded does not take place', async (t) => {
  const { service, transactor, later } = await jobsOf(t);
  const { admin, urls } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${key.id}`);
  later(30 * day);
  await dbQuery(urls.owner, 'alter function history_append(text, text) rename to history_append_away');
  await t.rejects(purgeDeletedKeys({ transactor, retentionSeconds }));
  t.same(await secretsOf(service, key.id), [{ left_over: 7, purged: false }]);
  await dbQuery(urls.owner, 'alter function history_append_away(text, text) rename to history_append');
  t.equal(await purgeDeletedKeys({ transactor, retentionSeconds }), 1);
  t.match((await events(admin))[0], { action: 'key.purged', keyId: key.id });
});

t.test('an expiry is announced once seven days and once one day before', async (t) => {
  const { service, transactor, later } = await jobsOf(t);
  const { admin } = service;
  const expiresIn = (ms: number) => new Date(Date.now() + ms).toISOString();
  const expiresAt = expiresIn(10 * day);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  await admin.patch(`/v1/keys/${key.id}`, { expiresAt });
  const { body: hurried } = await admin.post('/v1/keys', { expiresAt: expiresIn(hour) });
  const { body: deleted } = await admin.post('/v1/keys', { expiresAt: expiresIn(hour) });
  await admin.delete(`/v1/keys/${deleted.id}`);
  const announced = async () =>
    (await events(admin, '&action=key.expiry_announced')).map(({ keyId, details }) => [keyId, details.daysLeft]);

  t.equal(await announceExpiries({ transactor }), 1);
  t.same(await announced(), [[hurried.id, 1]], 'a key that lives one hour is announced once');
  later(3 * day - hour);
  t.equal(await announceExpiries({ transactor }), 0);
  later(hour);
  await Promise.all(Array.from({ length: 4 }, () => announceExpiries({ transactor })));
  t.same((await announced())[0], [key.id, 7]);
  t.match((await events(admin, `&action=key.expiry_announced&keyId=${key.id}`))[0], {
    partnerId: partner.id,
    actor: { type: 'system', id: 'announce_expiries' },
    request: null,
    details: { expiresAt, daysLeft: 7 },
  });
  later(6 * day);
  for (const _ of [1, 2]) await announceExpiries({ transactor });
  t.same(await announced(), [
    [key.id, 1],
    [key.id, 7],
    [hurried.id, 1],
  ]);
  await admin.patch(`/v1/keys/${key.id}`, { expiresAt: expiresIn(14 * day) });
  await announceExpiries({ transactor });
  t.same((await announced())[0], [key.id, 5], 'a new expiry is announced again, with the remaining days');
  const notes = async () => (await dbQuery(service.urls.app, 'select 1 from expiry_notices')).length;
  t.same(
    [await forgetExpiryNotices(transactor), await notes()],
    [1, 3],
    'an expiry notice is kept until the expiry is over',
  );
  t.equal(await announceExpiries({ transactor }), 0, 'no second announcement');
  later(30 * day);
  t.equal(await announceExpiries({ transactor }), 0, 'expired keys are not announced');
  t.same([await forgetExpiryNotices(transactor), await notes()], [3, 0]);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('another replica removes a purged key from its cache', async (t) => {
  const { service, transactor, later } = await jobsOf(t);
  const { admin, verifier } = service;
  const { onChanged: _, ...elsewhere } = transactor;
  const { body: key } = await admin.post('/v1/keys', {});
  const code = async () => (await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code;
  await admin.delete(`/v1/keys/${key.id}`);
  t.equal(await code(), 'deleted');
  later(30 * day);
  t.equal(await purgeDeletedKeys({ transactor: elsewhere, retentionSeconds }), 1);
  await eventually(async () => (await code()) === 'not_found', 1_000);
});
