import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

const unknownId = 'key_00000000000000000000000000';

async function startWithKeys(t: Parameters<typeof startService>[0], partners = 3) {
  const service = await startService(t);
  const keys: Json[] = [];
  for (let index = 0; index < partners; index++) {
    const { body } = await service.admin.post('/v1/partners', {
      email: `p${index}@p.example`,
      permissions: ['read', 'write'],
    });
    keys.push(...body.keys);
  }
  const ids: string[] = keys.map(({ id }) => id).sort();
  const bulk = (body: Json, headers = {}) => service.admin.post('/v1/keys/bulk', body, headers);
  return { ...service, keys, ids, bulk };
}

const eventsOf = async ({ admin }: Pick<TestService, 'admin'>, action: string): Promise<Json[]> =>
  (await admin.get(`/v1/history?action=${action}&limit=200`)).body.data;

const verdictOf = async ({ verifier }: Pick<TestService, 'verifier'>, { key, permission }: Json): Promise<string> =>
  (await verifier.post('/v1/verify', { key, permission })).body.code;

t.test('many keys are suspended, resumed and deleted at once, each with its event', async (t) => {
  const service = await startWithKeys(t);
  const { ids, keys, bulk, admin } = service;
  const [first = ''] = ids;
  await admin.post(`/v1/keys/${first}/suspend`, { reason: 'Before' });

  const { status, body } = await bulk({ action: 'suspend', reason: 'A leak', keyIds: [...ids, unknownId] });
  t.equal(status, 200);
  t.same(body, {
    action: 'suspend',
    dryRun: false,
    matched: 6,
    changed: ids.slice(1),
    skipped: [
      { keyId: unknownId, code: 'not_found' },
      { keyId: first, code: 'already_suspended' },
    ],
  });
  for (const key of keys) t.equal(await verdictOf(service, key), 'suspended');
  t.match((await admin.get(`/v1/keys/${first}`)).body, { suspendedReason: 'Before' });
  t.match((await admin.get(`/v1/keys/${ids[1]}`)).body, { status: 'suspended', suspendedReason: 'A leak' });
  const suspended = await eventsOf(service, 'key.suspended');
  t.same(suspended.map(({ keyId }) => keyId).sort(), ids);
  t.match(suspended[0], { details: { reason: 'A leak' } });

  t.match((await bulk({ action: 'resume', keyIds: ids.slice(0, 3) })).body, { changed: ids.slice(0, 3), skipped: [] });
  t.match((await admin.get(`/v1/keys/${first}`)).body, { status: 'active', suspendedAt: null, suspendedReason: null });
  t.equal((await eventsOf(service, 'key.resumed')).length, 3);
  t.same((await bulk({ action: 'resume', keyIds: [first] })).body.skipped, [{ keyId: first, code: 'not_suspended' }]);

  t.match((await bulk({ action: 'delete', reason: 'unused', keyIds: ids.slice(0, 2) })).body, { matched: 2 });
  t.same((await bulk({ action: 'delete', keyIds: ids.slice(0, 3) })).body, {
    action: 'delete',
    dryRun: false,
    matched: 3,
    changed: [ids[2]],
    skipped: ids.slice(0, 2).map((keyId) => ({ keyId, code: 'already_deleted' })),
  });
  const deleted = await eventsOf(service, 'key.deleted');
  t.same(
    deleted.map(({ keyId, details }) => [keyId, details.reason]).sort(),
    [
      [ids[0], 'unused'],
      [ids[1], 'unused'],
      [ids[2], 'other'],
    ].sort(),
  );
  t.match((await bulk({ action: 'delete', reason: 'compromised', keyIds: ids })).body, { changed: ids, skipped: [] });
  for (const key of keys) t.equal(await verdictOf(service, key), 'deleted');
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('a dry run says what would change, and changes nothing', async (t) => {
  const service = await startWithKeys(t);
  const { ids, keys, bulk, admin } = service;
  const before = (await admin.get('/v1/history')).body.data.length;
  const { body: planned } = await bulk({ action: 'delete', filter: { permission: 'read' }, dryRun: true });
  const expected = keys.filter(({ permission }) => permission === 'read').map(({ id }) => id);
  t.same(planned, { action: 'delete', dryRun: true, matched: 3, changed: expected.sort(), skipped: [] });
  t.equal((await admin.get('/v1/history')).body.data.length, before);
  for (const key of keys) t.equal(await verdictOf(service, key), 'valid');
  const { body: done } = await bulk({ action: 'delete', filter: { permission: 'read' } });
  t.same(done, { ...planned, dryRun: false });
  t.equal((await admin.get('/v1/keys')).body.data.length, ids.length - 3);
});

t.test('a filter selects the keys that the list shows', async (t) => {
  const { bulk, admin, keys } = await startWithKeys(t);
  const [one, two] = keys;
  await admin.patch(`/v1/keys/${one.id}`, { name: 'Billing export', metadata: { team: 'billing', 'a.b': 5 } });
  await admin.patch(`/v1/keys/${two.id}`, { name: 'Billing import', metadata: { team: 'billing' } });
  const select = async (filter: Json) => (await bulk({ action: 'suspend', filter, dryRun: true })).body.changed;
  t.same(await select({ name: 'BILLING', 'metadata.team': 'billing' }), [one.id, two.id].sort());
  t.same(await select({ 'metadata.a.b': '5' }), [one.id]);
  t.same(await select({ partnerId: one.partnerId, permission: 'write' }), [two.id]);
  await admin.delete(`/v1/keys/${one.id}`);
  t.same(await select({ name: 'billing' }), [two.id]);
  const compromise = { action: 'delete', reason: 'compromised', filter: { name: 'billing', includeDeleted: true } };
  t.same((await bulk(compromise)).body.changed, [one.id, two.id].sort(), 'deleted keys on request');
});

t.test('impossible bulk requests are rejected with their path', async (t) => {
  const { bulk, ids } = await startWithKeys(t, 1);
  const [id = ''] = ids;
  const many = Array.from(
    { length: 1_001 },
    (_, index) => `key_0000000000000000000000${String(index).padStart(4, '0')}`,
  );
  const cases: Array<[body: Json, path: string]> = [
    [{ action: 'suspend' }, 'body'],
    [{ action: 'suspend', keyIds: [id], filter: { name: 'x' } }, 'body'],
    [{ action: 'revoke', keyIds: [id] }, 'body.action'],
    [{ action: 'suspend', keyIds: [] }, 'body.keyIds'],
    [{ action: 'suspend', keyIds: many }, 'body.keyIds'],
    [{ action: 'suspend', keyIds: [id, id] }, 'body.keyIds'],
    [{ action: 'suspend', keyIds: ['key_x'] }, 'body.keyIds.0'],
    [{ action: 'suspend', filter: {} }, 'body.filter'],
    [{ action: 'suspend', filter: { includeDeleted: true } }, 'body.filter'],
    [{ action: 'suspend', filter: { team: 'x' } }, 'body.filter.team'],
    [{ action: 'suspend', filter: { limit: 5, name: 'x' } }, 'body.filter.limit'],
    [{ action: 'suspend', filter: { 'metadata.team': 5 } }, 'body.filter.metadata.team'],
    [{ action: 'suspend', filter: { includeDeleted: 'true', name: 'x' } }, 'body.filter.includeDeleted'],
    [{ action: 'resume', reason: 'Why', keyIds: [id] }, 'body.reason'],
    [{ action: 'delete', reason: 'Why', keyIds: [id] }, 'body.reason'],
    [{ action: 'delete', reason: 'expired', keyIds: [id] }, 'body.reason'],
    [{ action: 'suspend', reason: 'x'.repeat(501), keyIds: [id] }, 'body.reason'],
  ];
  for (const [body, path] of cases) {
    const { status, body: problem } = await bulk(body);
    t.same([status, problem.code], [400, 'validation_failed'], JSON.stringify(body).slice(0, 100));
    t.equal(problem.errors[0].path, path);
  }
});

t.test("another organization's keys are not found and not changed", async (t) => {
  const service = await startWithKeys(t, 1);
  const { ids, keys, operator } = service;
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  const { body } = await operator.post('/v1/keys/bulk', { action: 'delete', keyIds: ids }, inOther);
  t.same(
    body.skipped,
    ids.map((keyId) => ({ keyId, code: 'not_found' })),
  );
  t.match(body, { matched: 0, changed: [] });
  t.match((await operator.post('/v1/keys/bulk', { action: 'delete', filter: { permission: 'read' } }, inOther)).body, {
    matched: 0,
  });
  for (const key of keys) t.equal(await verdictOf(service, key), 'valid');
});

t.test('a filter with more than 1,000 matches changes nothing and is answered with their number', async (t) => {
  const { bulk, urls, ids, admin } = await startWithKeys(t, 1);
  await dbQuery(
    urls.superuser,
    `insert into partners select (jsonb_populate_record(one, jsonb_build_object(
       'id', 'partner_0' || to_char(n, 'FM0000000000000000000000000'), 'email', n || '@p.example'))).*
     from partners as one, generate_series(1, 1000) as n`,
  );
  await dbQuery(
    urls.superuser,
    `insert into api_keys select (jsonb_populate_record(one, jsonb_build_object(
       'id', 'key_0' || to_char(n, 'FM0000000000000000000000000'),
       'partner_id', 'partner_0' || to_char(n, 'FM0000000000000000000000000')))).*
     from api_keys as one, generate_series(1, 1000) as n where one.id = $1`,
    [ids[0]],
  );
  const { status, body } = await bulk({
    action: 'delete',
    filter: { createdBefore: new Date(Date.now() + 5_000).toISOString() },
  });
  t.same([status, body.code, body.matched], [400, 'too_many_matches', 1_002]);
  t.equal((await admin.get('/v1/keys?status=deleted')).body.data.length, 0);
  const one = (await admin.get(`/v1/keys/${ids[0]}`)).body;
  const { body: done } = await bulk({ action: 'suspend', filter: { permission: one.permission, name: 'x' } });
  t.match(done, { matched: 0, changed: [] });
});

t.test('a bulk request is all or nothing, and its repetition with an Idempotency-Key has one effect', async (t) => {
  const service = await startWithKeys(t);
  const { ids, bulk, admin, urls } = service;
  const [last = ''] = ids.slice(-1);
  await dbQuery(
    urls.owner,
    `alter table api_keys add constraint broken check (id <> '${last}' or suspended_at is null) not valid`,
  );
  t.equal((await bulk({ action: 'suspend', keyIds: ids })).status, 500);
  t.equal((await admin.get('/v1/keys?status=suspended')).body.data.length, 0);
  t.equal((await eventsOf(service, 'key.suspended')).length, 0);
  await dbQuery(urls.owner, 'alter table api_keys drop constraint broken');

  const request = { action: 'suspend', keyIds: ids };
  const once = { 'idempotency-key': 'incident-1' };
  const replies = await Promise.all(Array.from({ length: 4 }, () => bulk(request, once)));
  t.ok(replies.every(({ status }) => [200, 409, 429].includes(status)));
  const { body, headers } = await bulk(request, once);
  t.equal(headers['idempotent-replayed'], 'true');
  t.same(body.changed, ids);
  t.equal((await eventsOf(service, 'key.suspended')).length, ids.length);
});

t.test('at most two bulk requests of an organization run at once', async (t) => {
  const { ids, bulk } = await startWithKeys(t);
  const replies = await Promise.all(Array.from({ length: 12 }, () => bulk({ action: 'suspend', keyIds: ids })));
  const statuses = replies.map(({ status }) => status);
  t.ok(statuses.filter((status) => status === 200).length >= 2);
  t.ok(statuses.includes(429));
  t.ok(statuses.every((status) => [200, 429].includes(status)));
});
