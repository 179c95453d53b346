import { type Json, startService, type TestService } from './support/app.ts';
import { t } from './support/tap.ts';

const hourMs = 3_600_000;
const inHours = (hours: number) => new Date(Date.now() + hours * hourMs).toISOString();

const lastEvents = async ({ admin }: TestService, count: number): Promise<Json[]> =>
  (await admin.get(`/v1/history?limit=${count}`)).body.data;

const summary = (events: Json[]) => events.map(({ action, keyId }) => [action, keyId]);

t.test('a new key takes the place of an expired one, whose deletion is recorded first', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const { body: expiring } = await admin.post('/v1/keys', { expiresAt: inHours(1) });
  const { body: live } = await admin.post('/v1/keys', {});
  const full = await admin.post('/v1/keys', {});
  t.same([full.status, full.body.code], [409, 'row_full'], 'a key that will expire keeps its place');
  service.later(hourMs + 1_000);

  const { status, body: created } = await admin.post('/v1/keys', {});
  t.equal(status, 201);
  const events = await lastEvents(service, 2);
  t.same(summary(events), [
    ['key.created', created.id],
    ['key.deleted', expiring.id],
  ]);
  t.match(events[1], { details: { reason: 'expired' } });
  t.match((await admin.get(`/v1/keys/${expiring.id}`)).body, { status: 'deleted' });
  t.match((await admin.get(`/v1/keys/${live.id}`)).body, { status: 'active' });
  t.equal((await verifier.post('/v1/verify', { key: expiring.key, permission: 'read' })).body.code, 'deleted');
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });

  t.equal((await admin.post(`/v1/keys/${expiring.id}/restore`)).body.code, 'row_full');
  await admin.delete(`/v1/keys/${created.id}`);
  const { body: restored } = await admin.post(`/v1/keys/${expiring.id}/restore`);
  t.match(restored, { id: expiring.id, status: 'expired' }, 'it can be restored into a free place, still expired');
});

t.test('of two expired keys the one that expired first goes, also if it is suspended', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: later } = await admin.post('/v1/keys', { expiresAt: inHours(2) });
  const { body: first } = await admin.post('/v1/keys', { expiresAt: inHours(1) });
  await admin.post(`/v1/keys/${first.id}/suspend`);
  service.later(3 * hourMs);
  const { body: created } = await admin.post('/v1/keys', {});
  t.same(summary(await lastEvents(service, 2)), [
    ['key.created', created.id],
    ['key.deleted', first.id],
  ]);
  t.match((await admin.get(`/v1/keys/${later.id}`)).body, { status: 'expired' });
});

t.test('a row with a free place keeps its expired key', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: expired } = await admin.post('/v1/keys', { expiresAt: inHours(1) });
  service.later(2 * hourMs);
  t.equal((await admin.post('/v1/keys', {})).status, 201);
  t.match((await admin.get(`/v1/keys/${expired.id}`)).body, { status: 'expired' });
});

t.test('a rotation takes the place of an expired key', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [active] = partner.keys;
  const { body: expired } = await admin.post('/v1/keys', { partnerId: partner.id, expiresAt: inHours(1) });
  service.later(2 * hourMs);
  const { status, body: rotated } = await admin.post(`/v1/keys/${active.id}/rotate`, {});
  t.equal(status, 201);
  t.same(summary(await lastEvents(service, 3)), [
    ['key.rotated', active.id],
    ['key.created', rotated.id],
    ['key.deleted', expired.id],
  ]);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('of 24 concurrent creations in a row with a live and an expired key one succeeds', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const rows: string[] = [];
  for (let round = 0; round < 6; round++) {
    const { body: partner } = await admin.post('/v1/partners', { email: `p${round}@p.example`, permissions: ['read'] });
    rows.push(partner.id);
    await admin.post('/v1/keys', { partnerId: partner.id, expiresAt: inHours(1) });
  }
  service.later(2 * hourMs);
  for (const partnerId of rows) {
    const replies = await Promise.all(Array.from({ length: 24 }, () => admin.post('/v1/keys', { partnerId })));
    t.same(replies.map(({ status }) => status).sort(), [201, ...Array.from({ length: 23 }, () => 409)]);
    t.ok(replies.every(({ status, body }) => status === 201 || body.code === 'row_full'));
    t.equal((await admin.get(`/v1/keys?partnerId=${partnerId}`)).body.data.length, 2);
  }
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('an import takes the place of an expired key, and a rejected import deletes nothing', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: expired } = await admin.post('/v1/keys', { expiresAt: inHours(1) });
  await admin.post('/v1/keys', {});
  service.later(2 * hourMs);

  const entries = [{ plaintext: 'a-token-of-another-system-1' }, { plaintext: 'a-token-of-another-system-2' }];
  const rejected = await admin.post('/v1/keys/import', { entries });
  t.same([rejected.status, rejected.body.code], [409, 'row_full'], 'only one place can be taken');
  t.match((await admin.get(`/v1/keys/${expired.id}`)).body, { status: 'expired' });

  const imported = await admin.post('/v1/keys/import', { entries: [entries[0]] });
  t.equal(imported.status, 201);
  t.same(summary(await lastEvents(service, 2)), [
    ['key.imported', imported.body.data[0].id],
    ['key.deleted', expired.id],
  ]);
  t.match((await admin.get(`/v1/keys/${expired.id}`)).body, { status: 'deleted' });
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});
