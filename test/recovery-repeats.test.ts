import { type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

t.test('a request restores the deletion that it was created for, not a later one', async (t) => {
  const { admin, operator, verifier } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const { body: key } = await admin.post('/v1/keys', {});
  for (const [subject, url] of [
    [{ keyId: key.id }, `/v1/keys/${key.id}`],
    [{ partnerId: partner.id }, `/v1/partners/${partner.id}`],
  ] as const) {
    await admin.delete(url);
    const { body: firstRequest } = await admin.post('/v1/recovery-requests', { ...subject, details: 'By mistake' });
    t.equal((await admin.post(`${url}/restore`)).status, 200);
    await admin.delete(url);
    const approved = await operator.post(`/v1/recovery-requests/${firstRequest.id}/approve`);
    t.same([approved.status, approved.body.code], [409, 'conflict']);
    t.equal((await admin.get(url)).body.status, 'deleted');
    const { status, body: fresh } = await admin.post('/v1/recovery-requests', { ...subject, details: 'Again' });
    t.equal(status, 201, 'the earlier request is closed');
    t.equal((await admin.get(`/v1/recovery-requests/${firstRequest.id}`)).body.status, 'declined');
    t.equal((await admin.post('/v1/recovery-requests', { ...subject, details: 'Thrice' })).body.code, 'conflict');
    t.equal((await operator.post(`/v1/recovery-requests/${fresh.id}/approve`)).status, 200);
    const { body: history } = await admin.get('/v1/history?limit=5');
    t.ok(history.data.some(({ action }: Json) => action === 'recovery.declined'));
  }
  t.equal((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code, 'valid');
});

t.test('recovery of a key whose partner is deleted is requested for the partner, not for the key', async (t) => {
  const { admin } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  await admin.delete(`/v1/partners/${partner.id}`);
  const forKey = await admin.post('/v1/recovery-requests', { keyId: partner.keys[0].id, details: 'By mistake' });
  t.same([forKey.status, forKey.body.code], [409, 'not_restorable']);
  t.match(forKey.body.detail, partner.id);
});
