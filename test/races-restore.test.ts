import type { Test } from 'tap';
import { createDatabaseClock } from '../src/database/clock.ts';
import { purgeDeletedKeys } from '../src/keys/purge-job.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Client, type Json, type Reply, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

// Without a lock the constraints still reject invalid rows, but callers would get a 500 or a wrong row_full.

const statuses = (replies: Reply[]) => replies.map((reply) => reply.status).sort();

const repeated = <Made>(count: number, make: (index: number) => Made) =>
  Array.from({ length: count }, (_, index) => make(index));

/** What must always be true of keys, their owners, and their history. */
async function requireSound(t: Test, { admin, urls, organizationId }: TestService): Promise<void> {
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
  const [broken] = await dbQuery(
    urls.superuser,
    `select count(*) filter (where deleted_at is null and num_nonnulls(tag, argon2id_hash) < 2)::int as half_live,
       count(*) filter (where purged_at is not null and num_nonnulls(tag, argon2id_hash, sealed) > 0)::int as half_purged,
       count(*) filter (where deleted_at is null and not exists (select from partners p
         where p.id = k.partner_id and p.deleted_at is null and k.permission = any (p.permissions))
         and partner_id is not null)::int as without_owner,
       count(*) filter (where (deleted_at is not null) is distinct from coalesce((select h.action = 'key.deleted'
         from history h where h.key_id = k.id and h.action in ('key.deleted', 'key.restored')
         order by sequence desc limit 1), false))::int as otherwise_in_history,
       count(*) filter (where (purged_at is not null) <> exists (select from history h
         where h.key_id = k.id and h.action = 'key.purged'))::int as purged_without_event
     from api_keys k where organization_id = $1`,
    [organizationId],
  );
  t.same(broken, { half_live: 0, half_purged: 0, without_owner: 0, otherwise_in_history: 0, purged_without_event: 0 });
  const overfull = await dbQuery(
    urls.superuser,
    `select partner_id from api_keys where deleted_at is null group by organization_id, partner_id, permission
     having count(*) > 2`,
  );
  t.same(overfull, [], 'no row has three live keys');
}

/** Purges every deleted key, whenever it was deleted. */
function purgeOf({ client, keyring }: TestService) {
  const transactor = { db: client.db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries };
  return () => purgeDeletedKeys({ transactor, retentionSeconds: 0 });
}

async function deletedKey(admin: Client, row: Record<string, unknown> = {}): Promise<Json> {
  const { body: key } = await admin.post('/v1/keys', row);
  await admin.delete(`/v1/keys/${key.id}`);
  return key;
}

t.test('restoring a key during its purge: either the restore or the purge takes effect completely', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const purge = purgeOf(service);
  const outcomes = new Set<string>();
  for (let round = 0; round < 60; round++) {
    const key = await deletedKey(admin);
    const restore = () => admin.post(`/v1/keys/${key.id}/restore`);
    const [first, second] = round % 2 === 0 ? [restore, purge] : [purge, restore];
    const answers = await Promise.all([first(), second()]);
    const refused = answers.filter((answer) => typeof answer !== 'number' && ![200, 404].includes(answer.status));
    t.same(refused, [], 'one took place before the other');
    const { status, body } = await admin.get(`/v1/keys/${key.id}`);
    const { body: verdict } = await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
    outcomes.add(`${status} ${verdict.code}`);
    if (status === 200) await admin.delete(`/v1/keys/${body.id}`);
  }
  t.same(
    [...outcomes].filter((outcome) => !['200 valid', '404 not_found'].includes(outcome)),
    [],
  );
  t.equal(outcomes.size, 2, 'each order happened at least once');
  await requireSound(t, service);
});

t.test('restoring a partner during the purge of its keys: all or nothing', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const purge = purgeOf(service);
  const outcomes = new Set<string>();
  for (let round = 0; round < 40; round++) {
    const email = `p${round}@p.example`;
    const { body: partner } = await admin.post('/v1/partners', { email, permissions: ['read', 'write'] });
    for (const permission of ['read', 'write']) await admin.post('/v1/keys', { partnerId: partner.id, permission });
    await admin.delete(`/v1/partners/${partner.id}`);
    const restore = () => admin.post(`/v1/partners/${partner.id}/restore`);
    const operations = round % 2 === 0 ? [restore, purge] : [purge, restore];
    const answers = await Promise.all(operations.map((run) => run()));
    t.ok(answers.every((answer) => typeof answer === 'number' || [200, 409].includes(answer.status)));
    const { body } = await admin.get(`/v1/partners/${partner.id}`);
    const [row] = await dbQuery(
      urls.superuser,
      'select count(*) filter (where deleted_at is null)::int as live from api_keys where partner_id = $1',
      [partner.id],
    );
    outcomes.add(`${body.status} ${row?.['live']}`);
  }
  t.same([...outcomes].sort(), ['active 4', 'deleted 0'], 'each order happened at least once');
  await requireSound(t, service);
});

t.test('of 24 concurrent restores as many succeed as there are free places; the others get row_full', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (const occupied of [0, 1, 2]) {
    for (const owner of ['partner', 'default']) {
      const email = `${owner}${occupied}@p.example`;
      const { body: partner } = await admin.post('/v1/partners', { email, permissions: ['read'] });
      const row = owner === 'partner' ? { partnerId: partner.id } : {};
      if (owner === 'partner') await admin.delete(`/v1/keys/${partner.keys[0].id}`);
      const keys: Json[] = [];
      for (let count = 0; count < 24; count++) keys.push(await deletedKey(admin, row));
      for (let count = 0; count < occupied; count++) await admin.post('/v1/keys', row);
      const replies = await Promise.all(keys.map(({ id }) => admin.post(`/v1/keys/${id}/restore`)));
      const free = 2 - occupied;
      t.same(statuses(replies), [...repeated(free, () => 200), ...repeated(24 - free, () => 409)]);
      t.ok(replies.every(({ status, body }) => status === 200 || body.code === 'row_full'));
      const { body: live } = await admin.get(`/v1/keys?partnerId=${row.partnerId ?? 'default'}`);
      t.equal(live.data.length, 2);
      for (const { id } of live.data) await admin.delete(`/v1/keys/${id}`);
    }
  }
  await requireSound(t, service);
});

t.test('the last free place of a row is taken by exactly one restore, creation or rotation', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (let round = 0; round < 20; round++) {
    const { body: partner } = await admin.post('/v1/partners', { email: `p${round}@p.example`, permissions: ['read'] });
    const deletedOne = await deletedKey(admin, { partnerId: partner.id });
    const replies = await Promise.all([
      admin.post(`/v1/keys/${deletedOne.id}/restore`),
      admin.post('/v1/keys', { partnerId: partner.id }),
      admin.post(`/v1/keys/${partner.keys[0].id}/rotate`),
    ]);
    const [won, ...lost] = replies.toSorted((one, other) => one.status - other.status);
    t.ok(won !== undefined && won.status < 300);
    t.ok(lost.every(({ body }) => body.code === 'row_full'));
  }
  await requireSound(t, service);
});

t.test('of ten concurrent rotations of a key one succeeds: never three live keys, never none', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (let round = 0; round < 15; round++) {
    const { body: key } = await admin.post('/v1/keys', {});
    const replies = await Promise.all(
      repeated(10, (index) => admin.post(`/v1/keys/${key.id}/rotate`, { expireOldAfterSeconds: index % 2 })),
    );
    t.same(statuses(replies), [201, ...repeated(9, () => 409)]);
    t.ok(replies.every(({ body }) => body.code === undefined || ['row_full', 'conflict'].includes(body.code)));
    const { body: rows } = await admin.get('/v1/rows');
    t.equal(rows.data[0].keys.length, 2);
    t.equal(rows.data[0].keys[1].status, 'active');
    for (const { id } of rows.data[0].keys) await admin.delete(`/v1/keys/${id}`);
  }
  await requireSound(t, service);
});

t.test('a deleted partner has no live key, even if keys are created and restored at the same time', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const outcomes = new Set<string>();
  for (let round = 0; round < 60; round++) {
    const { body: partner } = await admin.post('/v1/partners', { email: `p${round}@p.example`, permissions: ['read'] });
    const deletedOne = await deletedKey(admin, { partnerId: partner.id });
    const path = `/v1/partners/${partner.id}`;
    if (round % 2 === 0) await admin.delete(path);
    const [changed, ...others] = await Promise.all([
      round % 2 === 0 ? admin.post(`${path}/restore`) : admin.delete(path),
      admin.post('/v1/keys', { partnerId: partner.id }),
      admin.post(`/v1/keys/${deletedOne.id}/restore`),
      admin.post(`/v1/keys/${partner.keys[0].id}/rotate`),
    ]);
    t.equal(changed.status, 200);
    for (const { status, body } of others) outcomes.add(status < 300 ? 'done' : body.code);
  }
  t.same(
    [...outcomes].filter(
      (code) => !['done', 'row_full', 'already_deleted', 'not_restorable', 'conflict'].includes(code),
    ),
    [],
  );
  t.ok(outcomes.size > 2, [...outcomes].join(', '));
  await requireSound(t, service);
});

t.test('a key restored while it is declared compromised stays deleted', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  for (let round = 0; round < 30; round++) {
    const key = await deletedKey(admin);
    const operations = [
      () => admin.post(`/v1/keys/${key.id}/restore`),
      () => admin.delete(`/v1/keys/${key.id}?reason=compromised`),
    ];
    const answers = await Promise.all((round % 2 === 0 ? operations : operations.toReversed()).map((run) => run()));
    t.ok(answers.every(({ status }) => status === 200 || status === 409));
    t.match((await admin.get(`/v1/keys/${key.id}`)).body, { status: 'deleted', restorableUntil: null });
    t.equal((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code, 'deleted');
  }
  await requireSound(t, service);
});

t.test('concurrent recovery requests and answers give one request and one answer', async (t) => {
  const service = await startService(t);
  const { admin, operator } = service;
  for (let round = 0; round < 10; round++) {
    const key = await deletedKey(admin);
    const creations = await Promise.all(
      repeated(8, () => admin.post('/v1/recovery-requests', { keyId: key.id, details: 'Please' })),
    );
    t.same(statuses(creations), [201, ...repeated(7, () => 409)]);
    const id = creations.find(({ status }) => status === 201)?.body.id;
    t.ok(creations.every(({ status, body }) => status === 201 || body.recoveryRequestId === id));
    const answersSent = await Promise.all(
      repeated(8, (index) =>
        operator.post(`/v1/recovery-requests/${id}/${index % 2 === 0 ? 'approve' : 'decline'}`, { note: 'So be it' }),
      ),
    );
    t.same(statuses(answersSent), [200, ...repeated(7, () => 409)]);
    const { body: request } = await admin.get(`/v1/recovery-requests/${id}`);
    const { body: now } = await admin.get(`/v1/keys/${key.id}`);
    t.equal(now.status, request.status === 'approved' ? 'active' : 'deleted');
    const { body: history } = await admin.get(`/v1/keys/${key.id}/history`);
    const answers = history.data.filter(({ action }: Json) => /^recovery\.(approved|declined)$/.test(action));
    t.same(
      answers.map(({ action }: Json) => action),
      [`recovery.${request.status}`],
    );
    await admin.delete(`/v1/keys/${key.id}`);
  }
  await requireSound(t, service);
});
