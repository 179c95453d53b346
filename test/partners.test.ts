import { type Json, startService, type TestService } from './support/app.ts';
import { t } from './support/tap.ts';

const events = async ({ admin }: TestService): Promise<Json[]> => (await admin.get('/v1/history?limit=200')).body.data;

t.test('an e-mail address has at most one live partner, regardless of case', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'Team@Partner.example', permissions: ['read'] });
  const again = await admin.post('/v1/partners', { email: 'team@partner.EXAMPLE', permissions: ['write'] });
  t.equal(again.status, 409);
  t.match(again.body, { code: 'partner_exists', partnerId: partner.id });
  const { body: other } = await admin.post('/v1/partners', { email: 'other@partner.example', permissions: ['read'] });
  const moved = await admin.patch(`/v1/partners/${other.id}`, { email: 'TEAM@partner.example' });
  t.match(moved.body, { code: 'partner_exists', partnerId: partner.id });
  t.same((await events(service)).filter((event) => event.action === 'partner.created').length, 2);
  t.notOk((await events(service)).some((event) => event.action === 'partner.updated'));
  const found = (await admin.get('/v1/partners?email=team@partner.example')).body.data;
  t.same(
    found.map((item: Json) => item.id),
    [partner.id],
  );
});

t.test('a partner is created with all its keys or not at all', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  await admin.post('/v1/partners', { email: 'a@p.example', permissions: ['read'] });
  const before = (await events(service)).length;
  for (const body of [
    { email: 'a@p.example', permissions: ['read', 'write'] },
    { email: 'not an address', permissions: ['read'] },
    { email: 'b@p.example', permissions: [] },
    { email: 'b@p.example', permissions: ['read', 'read'] },
    { email: 'b@p.example', permissions: ['read_write'] },
    { email: 'b@p.example' },
  ]) {
    const reply = await admin.post('/v1/partners', body);
    t.ok([400, 409].includes(reply.status), JSON.stringify(body));
  }
  t.equal((await admin.get('/v1/partners')).body.data.length, 1);
  t.equal((await admin.get('/v1/keys')).body.data.length, 1);
  t.equal((await events(service)).length, before);
});

t.test('removing a permission deletes its keys at once; adding one creates no key', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const [readKey, writeKey] = partner.keys;
  const code = async (key: Json) =>
    (await verifier.post('/v1/verify', { key: key.key, permission: key.permission })).body.code;

  const { body: reduced } = await admin.patch(`/v1/partners/${partner.id}`, { permissions: ['read'] });
  t.same(reduced.permissions, ['read']);
  t.equal(await code(readKey), 'valid');
  t.equal(await code(writeKey), 'deleted');
  t.match((await events(service)).slice(0, 2), [
    { action: 'key.deleted', keyId: writeKey.id, details: { reason: 'permission_removed' } },
    {
      action: 'partner.updated',
      details: { changes: { permissions: { from: ['read', 'write'], to: ['read'] } } },
    },
  ]);
  const refused = await admin.post('/v1/keys', { partnerId: partner.id, permission: 'write' });
  t.equal(refused.status, 400, 'a permission that was not granted');
  t.equal((await admin.post('/v1/keys', { partnerId: partner.id, permission: 'read_write' })).status, 400);

  const { body: widened } = await admin.patch(`/v1/partners/${partner.id}`, { permissions: ['write', 'read'] });
  t.same(widened.permissions, ['read', 'write'], 'always in the same order');
  t.equal((await admin.get(`/v1/keys?partnerId=${partner.id}`)).body.data.length, 1);
  t.equal((await admin.post('/v1/keys', { partnerId: partner.id, permission: 'write' })).status, 201);
});

t.test('a change without an effect is not recorded', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const rateLimit = { requests: 10, windowSeconds: 60 };
  const { body: partner } = await admin.post('/v1/partners', {
    email: 'p@p.example',
    permissions: ['read'],
    rateLimit,
  });
  const count = (await events(service)).length;
  for (const patch of [{}, { permissions: ['read'] }, { email: 'p@p.example', name: null }, { rateLimit }]) {
    t.equal((await admin.patch(`/v1/partners/${partner.id}`, patch)).status, 200);
  }
  t.equal((await events(service)).length, count);
  const { body } = await admin.patch(`/v1/partners/${partner.id}`, { name: 'Partner Inc', rateLimit: null });
  t.match(body, { name: 'Partner Inc', rateLimit: null });
  t.match((await events(service))[0], {
    action: 'partner.updated',
    details: { changes: { name: { from: null, to: 'Partner Inc' }, rateLimit: { from: rateLimit, to: null } } },
  });
});

t.test('a deleted partner', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const { body: deleted } = await admin.delete(`/v1/partners/${partner.id}`);
  t.equal(deleted.status, 'deleted');
  t.equal(Date.parse(deleted.restorableUntil) - Date.parse(deleted.deletedAt), 86_400_000);
  t.same((await admin.get('/v1/partners')).body.data, []);
  t.equal((await admin.get('/v1/partners?includeDeleted=true')).body.data[0].id, partner.id);
  t.equal((await admin.get(`/v1/partners/${partner.id}`)).body.status, 'deleted');
  t.equal((await admin.delete(`/v1/partners/${partner.id}`)).body.code, 'already_deleted');
  t.equal((await admin.patch(`/v1/partners/${partner.id}`, { name: 'x' })).body.code, 'already_deleted');
  t.same((await admin.get('/v1/rows')).body.data.length, 1, 'its rows are no longer listed');
  t.same(
    (await events(service)).slice(0, 3).map((event) => [event.action, event.details.reason]),
    [
      ['key.deleted', 'partner_deleted'],
      ['key.deleted', 'partner_deleted'],
      ['partner.deleted', undefined],
    ],
  );
});

t.test('no page of rows or partners omits an entry', async (t) => {
  const { admin } = await startService(t);
  for (let index = 0; index < 5; index++) {
    const permissions = index % 2 === 0 ? ['read', 'write'] : ['write'];
    await admin.post('/v1/partners', { email: `p${index}@p.example`, permissions });
  }
  const pages = async (path: string) => {
    const all: Json[] = [];
    for (let cursor = ''; ; ) {
      const { body } = await admin.get(`${path}?limit=2${cursor}`);
      all.push(...body.data);
      if (body.nextCursor === null) return all;
      cursor = `&cursor=${body.nextCursor}`;
    }
  };
  t.same(
    (await pages('/v1/rows')).map((row) => `${row.partnerEmail ?? 'default'} ${row.permission}`),
    [
      'default read_write',
      'p4@p.example read',
      'p4@p.example write',
      'p3@p.example write',
      'p2@p.example read',
      'p2@p.example write',
      'p1@p.example write',
      'p0@p.example read',
      'p0@p.example write',
    ],
  );
  t.same((await pages('/v1/partners')).map((partner) => partner.email).sort(), [
    'p0@p.example',
    'p1@p.example',
    'p2@p.example',
    'p3@p.example',
    'p4@p.example',
  ]);
});

t.test('metadata of a partner is stored as it is sent, and a change replaces the whole object', async (t) => {
  const { admin } = await startService(t);
  const metadata = { tier: 'gold', n: 1e21, deep: { list: [1, null] } };
  const { body: partner } = await admin.post('/v1/partners', { email: 'm@p.example', permissions: ['read'], metadata });
  t.same(partner.metadata, metadata);
  t.same((await admin.get(`/v1/partners/${partner.id}`)).body.metadata, metadata);
  t.same((await admin.get('/v1/partners')).body.data[0].metadata, metadata);
  t.match((await admin.get('/v1/history?action=partner.created')).body.data[0], { details: { metadata } });
  const changed = await admin.patch(`/v1/partners/${partner.id}`, { metadata: { tier: 'silver' } });
  t.same(changed.body.metadata, { tier: 'silver' });
  t.match((await admin.get('/v1/history?limit=1')).body.data[0], {
    action: 'partner.updated',
    details: { changes: { metadata: { from: metadata, to: { tier: 'silver' } } } },
  });
  const count = (await admin.get('/v1/history')).body.data.length;
  await admin.patch(`/v1/partners/${partner.id}`, { metadata: { tier: 'silver' } });
  t.equal((await admin.get('/v1/history')).body.data.length, count, 'no change, no event');
  const { body: plain } = await admin.post('/v1/partners', { email: 'n@p.example', permissions: ['read'] });
  t.same(plain.metadata, {});
  const long = await admin.patch(`/v1/partners/${partner.id}`, { metadata: { text: 'x'.repeat(16_384) } });
  t.same([long.status, long.body.errors[0].path], [400, 'body.metadata']);
  for (const other of [null, [], 'x']) {
    t.equal((await admin.patch(`/v1/partners/${partner.id}`, { metadata: other })).status, 400);
  }
});
