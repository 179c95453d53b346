import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { t } from './support/tap.ts';

const events = async (admin: Client, count = 200): Promise<Json[]> =>
  (await admin.get(`/v1/history?limit=${count}`)).body.data;

const verdictOf = async ({ verifier }: TestService, { key, permission }: Json): Promise<string> =>
  (await verifier.post('/v1/verify', { key, permission: permission === 'write' ? 'write' : 'read' })).body.code;

t.test('a suspended key is rejected and keeps its place; once resumed it works again', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: other } = await admin.post('/v1/keys', {});
  t.equal(await verdictOf(service, key), 'valid');

  const { status, body: suspended } = await admin.post(`/v1/keys/${key.id}/suspend`);
  t.equal(status, 200);
  t.equal(suspended.status, 'suspended');
  t.ok(suspended.suspendedAt);
  t.equal(await verdictOf(service, key), 'suspended');
  t.equal((await service.as(key.key).get('/v1/self')).status, 401);
  t.equal(await verdictOf(service, other), 'valid', 'the other key of the row still works');
  t.equal((await admin.post('/v1/keys', {})).body.code, 'row_full');
  t.same(
    (await admin.get('/v1/keys?status=suspended')).body.data.map((item: Json) => item.id),
    [key.id],
  );
  t.match((await events(admin, 1))[0], { action: 'key.suspended', keyId: key.id, details: {} });

  const { body: resumed } = await admin.post(`/v1/keys/${key.id}/resume`);
  t.match(resumed, { status: 'active', suspendedAt: null });
  t.equal(await verdictOf(service, key), 'valid');
  t.match((await events(admin, 1))[0], { action: 'key.resumed', keyId: key.id, details: {} });
});

t.test('the reason of a suspension is shown and recorded until the key is resumed', async (t) => {
  const { admin } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  t.equal(key.suspendedReason, null);
  const reason = 'The partner reported a leak';
  t.match((await admin.post(`/v1/keys/${key.id}/suspend`, { reason })).body, { suspendedReason: reason });
  t.match((await events(admin, 1))[0], { action: 'key.suspended', details: { reason } });
  t.match((await admin.post(`/v1/keys/${key.id}/suspend`, { reason: 'Later' })).body, { suspendedReason: reason });
  t.match((await admin.post(`/v1/keys/${key.id}/resume`)).body, { suspendedAt: null, suspendedReason: null });
  for (const body of [undefined, null, {}]) {
    t.match((await admin.post(`/v1/keys/${key.id}/suspend`, body)).body, {
      status: 'suspended',
      suspendedReason: null,
    });
    await admin.post(`/v1/keys/${key.id}/resume`);
  }
  const cases: Array<[body: unknown, path: string]> = [
    [{ reason: 'x'.repeat(501) }, 'body.reason'],
    [{ reason: '' }, 'body.reason'],
    [{ reason: null }, 'body.reason'],
    [{ why: 'x' }, 'body.why'],
  ];
  for (const [body, path] of cases) {
    const { status, body: problem } = await admin.post(`/v1/keys/${key.id}/suspend`, body);
    t.same([status, problem.errors[0].path], [400, path]);
  }
  const secret = await admin.post(`/v1/keys/${key.id}/suspend`, { reason: `Found ${key.key}` });
  t.same([secret.status, secret.body.code], [400, 'secret_in_text']);
});

t.test('all keys of a suspended partner are rejected; keys that are suspended themselves stay suspended', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const [readKey, writeKey] = partner.keys;
  await admin.post(`/v1/keys/${writeKey.id}/suspend`);
  const { status, body: suspended } = await admin.post(`/v1/partners/${partner.id}/suspend`);
  t.equal(status, 200);
  t.equal(suspended.status, 'suspended');
  t.same((await admin.get(`/v1/partners/${partner.id}`)).body, suspended);
  t.equal(await verdictOf(service, readKey), 'partner_suspended');
  t.equal((await service.as(readKey.key).get('/v1/self')).status, 401);
  t.match((await events(admin, 1))[0], {
    action: 'partner.suspended',
    partnerId: partner.id,
    keyId: null,
    details: {},
  });

  const { body: added } = await admin.post('/v1/keys', { partnerId: partner.id, permission: 'read' });
  t.equal(await verdictOf(service, added), 'partner_suspended', 'a key added during the suspension is also rejected');

  t.match((await admin.post(`/v1/partners/${partner.id}/resume`)).body, { status: 'active', suspendedAt: null });
  t.equal(await verdictOf(service, readKey), 'valid');
  t.equal(await verdictOf(service, added), 'valid');
  t.equal(await verdictOf(service, writeKey), 'suspended');
  t.match((await events(admin, 1))[0], { action: 'partner.resumed', partnerId: partner.id });
});

t.test('suspending or resuming twice has no effect and is not recorded', async (t) => {
  const { admin } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  for (const path of [`/v1/keys/${key.id}`, `/v1/partners/${partner.id}`]) {
    for (const action of ['resume', 'suspend', 'resume']) {
      const first = await admin.post(`${path}/${action}`);
      const count = (await events(admin)).length;
      const second = await admin.post(`${path}/${action}`);
      t.same([second.status, second.body], [200, first.body], `${action} ${path}`);
      t.equal((await events(admin)).length, count);
    }
  }
});

t.test('a deleted key or partner can be neither suspended nor resumed', async (t) => {
  const { admin } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  for (const path of [`/v1/keys/${key.id}`, `/v1/partners/${partner.id}`]) {
    await admin.delete(path);
    const count = (await events(admin)).length;
    for (const action of ['suspend', 'resume']) {
      t.match(await admin.post(`${path}/${action}`), { status: 409, body: { code: 'already_deleted' } });
    }
    t.equal((await events(admin)).length, count);
  }
  t.equal(
    (await admin.post(`/v1/keys/${partner.keys[0].id}/suspend`)).body.code,
    'already_deleted',
    'a key of the deleted partner cannot be suspended',
  );
});
