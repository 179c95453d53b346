import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

const lastEvents = async ({ admin }: TestService, count: number): Promise<Json[]> =>
  (await admin.get(`/v1/history?limit=${count}`)).body.data;

t.test('listing keys', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: both } = await admin.post('/v1/partners', { email: 'b@p.example', permissions: ['read', 'write'] });
  const { body: first } = await admin.post('/v1/keys', { name: 'first' });
  const { body: second } = await admin.post('/v1/keys', { name: 'second' });
  const ids = (body: Json) => body.data.map((key: Json) => key.id);

  await t.test('keys are listed newest first, and no page omits or repeats a key', async (t) => {
    const all: string[] = [];
    let cursor = '';
    for (let page = 0; page < 4; page++) {
      const { body } = await admin.get(`/v1/keys?limit=1${cursor}`);
      all.push(...ids(body));
      cursor = `&cursor=${body.nextCursor}`;
      if (body.nextCursor === null) break;
    }
    t.same(all, [second.id, first.id, both.keys[1].id, both.keys[0].id]);
  });

  await t.test('the list can be filtered by owner, permission and status', async (t) => {
    t.same(ids((await admin.get('/v1/keys?partnerId=default')).body), [second.id, first.id]);
    t.same(ids((await admin.get(`/v1/keys?partnerId=${both.id}`)).body), [both.keys[1].id, both.keys[0].id]);
    t.same(ids((await admin.get('/v1/keys?permission=write')).body), [both.keys[1].id]);
    t.same(ids((await admin.get('/v1/keys?status=active')).body).length, 4);
    t.same(ids((await admin.get('/v1/keys?status=suspended')).body), []);
  });

  await t.test('deleted keys are listed on request, compromised keys only by their status', async (t) => {
    await admin.delete(`/v1/keys/${first.id}`);
    await admin.delete(`/v1/keys/${second.id}?reason=compromised`);
    t.same(ids((await admin.get('/v1/keys?partnerId=default')).body), []);
    t.same(ids((await admin.get('/v1/keys?partnerId=default&includeDeleted=true')).body), [first.id]);
    t.same(ids((await admin.get('/v1/keys?partnerId=default&status=deleted')).body), [second.id, first.id]);
    service.later(86_400_001);
    t.same(ids((await admin.get('/v1/keys?partnerId=default&includeDeleted=true')).body), [], 'past the undo window');
  });

  await t.test('a cursor that was not returned by a list is rejected', async (t) => {
    for (const cursor of ['x', 'a2V5Xzs', '%20', first.id]) {
      const { status, body } = await admin.get(`/v1/keys?cursor=${cursor}`);
      t.equal(status, 400);
      t.equal(body.code, 'cursor_invalid');
    }
  });
});

t.test('a key is rejected from its expiry on', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const expiresAt = new Date(Date.now() + 3_600_000).toISOString();
  const { body: key } = await admin.post('/v1/keys', { expiresAt });
  t.equal(key.expiresAt, expiresAt);
  const past = await admin.post('/v1/keys', { expiresAt: '2020-01-01T00:00:00.000Z' });
  t.equal(past.status, 400);
  t.equal(past.body.errors[0].path, 'body.expiresAt');

  service.later(3_600_001);
  t.equal((await admin.get(`/v1/keys/${key.id}`)).body.status, 'expired');
  t.same(
    (await admin.get('/v1/keys?status=expired')).body.data.map((item: Json) => item.id),
    [key.id],
  );
  t.equal((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code, 'expired');
  const { status, body } = await admin.patch(`/v1/keys/${key.id}`, { expiresAt: null });
  t.equal(status, 200);
  t.equal(body.status, 'active');
  t.match((await lastEvents(service, 1))[0], {
    action: 'key.updated',
    keyId: key.id,
    details: { changes: { expiresAt: { from: expiresAt, to: null } } },
  });
});

t.test('changing a key', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const { body: key } = await admin.post('/v1/keys', {
    name: 'Old',
    metadata: { team: 'a', deep: { list: [1, null] } },
  });
  const { body: before } = await admin.get(`/v1/keys/${key.id}`);
  const count = (await lastEvents(service, 200)).length;

  t.same((await admin.patch(`/v1/keys/${key.id}`, {})).body, before);
  t.same((await admin.patch(`/v1/keys/${key.id}`, { name: 'Old', metadata: before.metadata })).body, before);
  t.equal((await lastEvents(service, 200)).length, count, 'a change without an effect is not recorded');

  const patch = {
    name: 'New',
    metadata: { team: 'b' },
    allowedIps: ['203.0.113.0/24', '2001:db8::/32'],
    rateLimit: { requests: 5, windowSeconds: 60 },
  };
  const { body: changed } = await admin.patch(`/v1/keys/${key.id}`, patch);
  t.match(changed, patch);
  t.same((await admin.get(`/v1/keys/${key.id}`)).body, changed);
  t.match((await lastEvents(service, 1))[0], {
    action: 'key.updated',
    details: { changes: { name: { from: 'Old', to: 'New' }, metadata: { from: before.metadata, to: { team: 'b' } } } },
  });
  const { body: verdict } = await verifier.post('/v1/verify', { key: key.key, permission: 'read', ip: '203.0.113.9' });
  t.match(verdict, { valid: true, name: 'New', metadata: { team: 'b' } });

  await admin.delete(`/v1/keys/${key.id}`);
  t.equal((await admin.patch(`/v1/keys/${key.id}`, { name: 'Newer' })).body.code, 'already_deleted');
});

t.test('a compromised key loses its secrets at once and is still recognized', async (t) => {
  const service = await startService(t);
  const { admin, verifier, urls } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: unused } = await admin.post('/v1/keys', {});
  const { body: deleted } = await admin.delete(`/v1/keys/${key.id}?reason=compromised`);
  t.equal(deleted.restorableUntil, null);
  const [row] = await dbQuery(
    urls.superuser,
    'select argon2id_hash, sealed, octet_length(tag) as tag from api_keys where id = $1',
    [key.id],
  );
  t.same(row, { argon2id_hash: null, sealed: null, tag: 32 });
  t.equal((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code, 'deleted');

  await admin.delete(`/v1/keys/${unused.id}?reason=unused`);
  const reveal = await admin.post(`/v1/keys/${unused.id}/reveal`);
  t.equal(reveal.body.code, 'already_deleted', 'a key that can still be restored is not revealed');
  const compromised = await admin.delete(`/v1/keys/${unused.id}?reason=compromised`);
  t.equal(compromised.status, 200, 'a key that was deleted for another reason can be declared compromised');
  t.equal(compromised.body.restorableUntil, null);
  t.equal((await admin.delete(`/v1/keys/${unused.id}?reason=compromised`)).body.code, 'already_deleted');
  t.same(
    (await admin.get('/v1/history?action=key.deleted')).body.data.map((event: Json) => event.details.reason),
    ['compromised', 'unused', 'compromised'],
  );
});

t.test('an organization stores no plaintexts if its keyReveal is never', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const { body: before } = await admin.post('/v1/keys', {});
  t.equal((await admin.patch('/v1/organization', { keyReveal: 'never' })).status, 200);
  const { body: after } = await admin.post('/v1/keys', {});
  t.ok(after.key, 'the reply that creates it has the plaintext');
  const rows = await dbQuery(urls.superuser, 'select count(*)::int as sealed from api_keys where sealed is not null');
  t.same(rows, [{ sealed: 0 }], 'existing sealed values are deleted, and none are added');
  for (const key of [before, after]) {
    const { status, body } = await admin.post(`/v1/keys/${key.id}/reveal`);
    t.equal(status, 403);
    t.equal(body.code, 'reveal_disabled');
  }
  await admin.patch('/v1/organization', { keyReveal: 'allowed' });
  for (const key of [before, after]) {
    const { body } = await admin.post(`/v1/keys/${key.id}/reveal`);
    t.match(body, { code: 'reveal_disabled', detail: /never when the key was created, or was set to never later/ });
    t.notMatch(body.detail, /was not kept/, 'the detail claims nothing that Latchkey does not know');
  }
  await admin.delete(`/v1/keys/${before.id}`);
  const { body: next } = await admin.post(`/v1/keys/${after.id}/rotate`);
  const { body: revealed } = await admin.post(`/v1/keys/${next.id}/reveal`);
  t.match(revealed.key, /^lk_k_/, 'the advice of the detail works');
  const reveals = (await lastEvents(service, 200)).filter((event) => event.action === 'key.revealed');
  t.equal(reveals.length, 1, 'a rejected reveal is not recorded as a reveal');
});

t.test('a plaintext is only in the reply that creates its key and in a reveal', async (t) => {
  const { admin } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', { name: 'Quiet' });
  await admin.post(`/v1/keys/${key.id}/reveal`, { reason: 'look' });
  const paths = ['/v1/rows', '/v1/keys', `/v1/keys/${key.id}`, '/v1/history', `/v1/keys/${key.id}/history`];
  for (const path of paths) {
    const { status, body } = await admin.get(path);
    t.equal(status, 200);
    t.notOk(JSON.stringify(body).includes(key.key), path);
    t.notMatch(JSON.stringify(body), /argon2|sealed|"tag"/, path);
  }
  const { body: shown } = await admin.get(`/v1/keys/${key.id}`);
  t.same(Object.keys(shown), [
    'id',
    'origin',
    'organizationId',
    'partnerId',
    'permission',
    'name',
    'maskedKey',
    'status',
    'replacesKeyId',
    'createdAt',
    'createdBy',
    'expiresAt',
    'suspendedAt',
    'suspendedReason',
    'deletedAt',
    'restorableUntil',
    'lastUsedAt',
    'rateLimit',
    'allowedIps',
    'scopes',
    'metadata',
  ]);
});

t.test('a sealed value can only be opened for its own key', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const { body: one } = await admin.post('/v1/keys', {});
  const { body: two } = await admin.post('/v1/keys', {});
  const exchange = 'update api_keys set sealed = (select sealed from api_keys where id = $2) where id = $1';
  await dbQuery(urls.superuser, exchange, [one.id, two.id]);
  const { status, body } = await admin.post(`/v1/keys/${one.id}/reveal`);
  t.equal(status, 500);
  t.equal(body.code, 'internal');
  t.notOk(JSON.stringify(body).includes(two.key));
  t.equal((await lastEvents(service, 1))[0]?.action, 'key.revealed', 'the attempt is recorded');
  t.match(service.logLines.join(''), /not_authentic/, 'the log has the cause');

  await dbQuery(urls.superuser, "update api_keys set sealed_keyring_id = 'gone' where id = $1", [two.id]);
  t.equal((await admin.post(`/v1/keys/${two.id}/reveal`)).status, 500);
  t.match(service.logLines.join(''), /unknown_keyring_entry/);
});

t.test(
  'allowed addresses: mapped IPv4 is stored as IPv4, and a network that would allow nearly everything is rejected',
  async (t) => {
    const { admin, verifier } = await startService(t);
    const create = (allowedIps: string[]) => admin.post('/v1/keys', { allowedIps });
    const { body: key } = await create([
      '::ffff:192.0.2.1',
      '::FFFF:c000:202/128',
      '::ffff:198.51.100.0/120',
      '2001:db8::/32',
    ]);
    t.same(key.allowedIps, ['192.0.2.1', '192.0.2.2/32', '198.51.100.0/24', '2001:db8::/32']);
    const code = async (ip: string) =>
      (await verifier.post('/v1/verify', { key: key.key, permission: 'read', ip })).body.code;
    t.same(await Promise.all(['192.0.2.1', '::ffff:198.51.100.9', '192.0.2.3'].map(code)), [
      'valid',
      'valid',
      'ip_not_allowed',
    ]);
    for (const [entry, message] of [
      ['::ffff:192.0.2.1/96', /would mean 0\.0\.0\.0\/0, every IPv4 address; .*192\.0\.2\.1\/32/],
      ['::ffff:0:0/96', /every IPv4 address/],
      ['::ffff:c000:0201/97', /prefix \/1, 1 of 2 of all IPv4 addresses/],
      ['0:0:0:0:0:ffff:192.0.2.1/103', /prefix \/7/],
      ['::ffff:192.0.2.1/24', /without any IPv4 client; .*192\.0\.2\.1\/32/],
      ['192.0.2.1/0', /would mean 0\.0\.0\.0\/0, every IPv4 address/],
      ['2001:db8::1/0', /would mean ::\/0, every IPv6 address/],
      ['192.0.2.1/33', /must be an IPv4 or IPv6 address/],
      ['fe80::1%eth0', /must be an IPv4 or IPv6 address/],
    ] as const) {
      const { status, body } = await admin.patch(`/v1/keys/${key.id}`, { allowedIps: ['203.0.113.7', entry] });
      t.match({ status, error: body.errors[0] }, { status: 400, error: { path: 'body.allowedIps.1', message } }, entry);
    }
    t.match(
      await admin.patch(`/v1/keys/${key.id}`, { allowedIps: ['0.0.0.0/0', '::/0'] }),
      { status: 200 },
      'an explicit network is accepted',
    );
  },
);
