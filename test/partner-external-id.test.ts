import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

// Partners are found by the id that they have in the organization's own system, and every verification returns it.

const events = async ({ admin }: TestService): Promise<Json[]> => (await admin.get('/v1/history?limit=200')).body.data;

const input = { email: 'p@p.example', permissions: ['read'] };

t.test('a partner can have an externalId from its creation on, or get, change and lose it later', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { ...input, externalId: 'Customer 4711' });
  t.equal(partner.externalId, 'Customer 4711');
  t.match((await events(service))[1], { action: 'partner.created', details: { externalId: 'Customer 4711' } });
  const path = `/v1/partners/${partner.id}`;
  let before: string | null = 'Customer 4711';
  for (const externalId of ['4712', null, 'e\u0301 / "100%"', 'x'.repeat(255)]) {
    const patched = await admin.patch(path, { externalId });
    t.match(patched, { status: 200, body: { externalId } });
    t.match(await admin.get(path), { body: { externalId }, headers: { etag: patched.headers['etag'] } });
    t.same((await events(service))[0]?.details, { changes: { externalId: { from: before, to: externalId } } });
    before = externalId;
  }
  await admin.patch(path, { name: 'Renamed' });
  t.equal((await admin.get(path)).body.externalId, before, 'another change leaves it');
  const { body: without } = await admin.post('/v1/partners', { ...input, email: 'q@p.example' });
  t.equal(without.externalId, null);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('an externalId has 1 to 255 characters and no control characters', async (t) => {
  const { admin, urls } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', input);
  for (const externalId of ['', 'x'.repeat(256), 'a\nb', 'a\u0000b', 'a\u007fb', 'a\u0085b', 7, ['a']]) {
    const expected = { status: 400, body: { errors: [{ path: 'body.externalId' }] } };
    t.match(await admin.post('/v1/partners', { ...input, email: 'q@p.example', externalId }), expected);
    t.match(await admin.patch(`/v1/partners/${partner.id}`, { externalId }), expected);
  }
  for (const externalId of ['', 'x'.repeat(256), 'a\nb', 'a\u007fb', 'a\u0085b']) {
    const update = dbQuery(urls.superuser, 'update partners set external_id = $1', [externalId]);
    await t.rejects(update, /partners_external_id_form/, JSON.stringify(externalId));
  }
});

t.test('an externalId has at most one live partner of an organization', async (t) => {
  const service = await startService(t);
  const { admin, operator } = service;
  const { body: partner } = await admin.post('/v1/partners', { ...input, externalId: '4711' });
  const taken = { status: 409, body: { code: 'external_id_exists', partnerId: partner.id } };
  const next = { ...input, email: 'q@p.example' };
  const count = (await events(service)).length;
  t.match(await admin.post('/v1/partners', { ...next, externalId: '4711' }), taken);
  t.equal((await events(service)).length, count);
  const { body: other } = await admin.post('/v1/partners', next);
  t.match(await admin.patch(`/v1/partners/${other.id}`, { externalId: '4711' }), taken);
  t.equal((await admin.get(`/v1/partners/${other.id}`)).body.externalId, null);
  t.equal((await admin.patch(`/v1/partners/${partner.id}`, { externalId: '4711' })).status, 200, 'its own');
  t.equal((await admin.get('/v1/partners')).body.data.length, 2);

  const { body: organization } = await operator.post('/v1/organizations', { name: 'Other' });
  const elsewhere = { 'latchkey-organization': organization.id };
  const same = await operator.post('/v1/partners', { ...input, externalId: '4711' }, elsewhere);
  t.equal(same.status, 201, 'each organization has its own');

  await admin.delete(`/v1/partners/${partner.id}`);
  t.equal((await admin.patch(`/v1/partners/${other.id}`, { externalId: '4711' })).status, 200, 'free after a deletion');
  t.match((await events(service))[0], {
    action: 'partner.updated',
    partnerId: other.id,
    details: { changes: { externalId: { from: null, to: '4711' } } },
  });
});

t.test('partners are found by their exact externalId', async (t) => {
  const { admin } = await startService(t);
  const ids: Record<string, string> = {};
  for (const [index, externalId] of ['a', 'A', 'a b&c=é', 'aa'].entries()) {
    const { body } = await admin.post('/v1/partners', { ...input, email: `p${index}@p.example`, externalId });
    ids[externalId] = body.id;
  }
  await admin.post('/v1/partners', input);
  const found = async (externalId: string, more = '') => {
    const { body } = await admin.get(`/v1/partners?externalId=${encodeURIComponent(externalId)}${more}`);
    return body.data.map(({ id }: Json) => id);
  };
  for (const [externalId, id] of Object.entries(ids)) t.same(await found(externalId), [id], externalId);
  t.same(await found('b'), []);
  t.same(await found('a', '&email=p1@p.example'), [], 'both filters apply');
  await admin.delete(`/v1/partners/${ids['a']}`);
  t.same(await found('a'), []);
  t.same(await found('a', '&includeDeleted=true'), [ids['a']]);
  for (const invalid of ['', 'x'.repeat(256), 'a\u0000']) {
    const { status } = await admin.get(`/v1/partners?externalId=${encodeURIComponent(invalid)}`);
    t.equal(status, 400, JSON.stringify(invalid));
  }
});

t.test('every verification after a change returns the new externalId', async (t) => {
  const { app, admin, verifier } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', input);
  const [{ key }] = partner.keys;
  const { body: own } = await admin.post('/v1/keys', {});
  const all = async (presented: string) => {
    const entry = { key: presented, permission: 'read' };
    const { body: verdict } = await verifier.post('/v1/verify', entry);
    const { body: batch } = await verifier.post('/v1/verify/batch', { entries: [entry] });
    const introspected = await app.inject({
      method: 'POST',
      url: '/v1/introspect',
      headers: { authorization: `Bearer ${verifier.token}`, 'content-type': 'application/x-www-form-urlencoded' },
      payload: `token=${presented}`,
    });
    const authorized = await app.inject({
      url: '/v1/authorize',
      headers: { 'x-latchkey-token': verifier.token, 'x-api-key': presented, 'x-forwarded-method': 'GET' },
    });
    const header = authorized.headers['x-latchkey-partner-external-id']?.toString();
    return {
      verify: verdict.partnerExternalId,
      batch: batch.data[0].partnerExternalId,
      introspect: introspected.json().active && introspected.json().partnerExternalId,
      authorize: header === undefined ? undefined : decodeURIComponent(header),
    };
  };
  const none = { verify: null, batch: null, introspect: undefined, authorize: '' };
  t.same(await all(key), none);
  for (const externalId of ['4711', 'Zoë & Co. / 100%']) {
    await admin.patch(`/v1/partners/${partner.id}`, { externalId });
    const expected = { verify: externalId, batch: externalId, introspect: externalId, authorize: externalId };
    t.same(await all(key), expected);
  }
  t.same(await all(own.key), none, "an organization's own key");
  await admin.patch(`/v1/partners/${partner.id}`, { externalId: null });
  t.same(await all(key), none);
});
