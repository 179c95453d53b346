import { newId } from '../src/domain/ids.ts';
import { type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

t.test("an organization's settings and rate limit", async (t) => {
  const { admin, organizationId } = await startService(t);
  const { body: organization } = await admin.get('/v1/organization');
  t.match(organization, {
    id: organizationId,
    keyReveal: 'allowed',
    rateLimit: { requests: 1_000, windowSeconds: 60 },
  });
  const { body: renamed } = await admin.patch('/v1/organization', { name: 'New name' });
  t.equal(renamed.name, 'New name');
  t.same((await admin.get('/v1/rate-limit')).body, { requests: 1_000, windowSeconds: 60 });
  t.same((await admin.put('/v1/rate-limit', { requests: 5, windowSeconds: 86_400 })).body, {
    requests: 5,
    windowSeconds: 86_400,
  });
  t.same((await admin.get('/v1/organization')).body.rateLimit, { requests: 5, windowSeconds: 86_400 });
  await admin.put('/v1/rate-limit', { requests: 5, windowSeconds: 86_400 });
  await admin.patch('/v1/organization', { name: 'New name' });
  const { body: history } = await admin.get('/v1/history?limit=2');
  t.match(history.data, [
    { action: 'rate_limit.updated', details: { changes: { requests: { from: 1_000, to: 5 } } } },
    { action: 'organization.updated', details: { changes: { name: { to: 'New name' } } } },
  ]);
  for (const limit of [
    { requests: 0, windowSeconds: 60 },
    { requests: 1, windowSeconds: 86_401 },
    { requests: 1_000_000_001, windowSeconds: 60 },
    { requests: 1.5, windowSeconds: 60 },
    { requests: 1 },
  ]) {
    t.equal((await admin.put('/v1/rate-limit', limit)).status, 400);
  }
});

t.test('access tokens', async (t) => {
  const service = await startService(t);
  const { admin, as } = service;
  const input = { role: 'admin', scopes: ['read'], name: 'Bob', email: 'bob@example.com' };

  await t.test('an admin creates a token for a named person; its plaintext is shown once', async (t) => {
    const { status, headers, body } = await admin.post('/v1/access-tokens', input);
    t.equal(status, 201);
    t.equal(headers['location'], `/v1/access-tokens/${body.id}`);
    t.match(body, { ...input, maskedToken: `lk_a_…${body.token.slice(-4)}`, createdBy: { email: 'ada@example.com' } });
    const { token, ...shown } = body;
    t.same((await admin.get(`/v1/access-tokens/${body.id}`)).body, shown);
    t.notOk(JSON.stringify((await admin.get('/v1/access-tokens')).body).includes(token));
    t.match((await as(token).get('/v1/self')).body, { kind: 'access_token', role: 'admin', scopes: ['read'] });
    t.match((await admin.get('/v1/history?limit=1')).body.data[0], {
      action: 'access_token.created',
      details: { accessTokenId: body.id, role: 'admin', scopes: ['read'], email: 'bob@example.com' },
    });
  });

  await t.test('a token can only give its own scopes', async (t) => {
    const { body: writer } = await admin.post('/v1/access-tokens', { ...input, scopes: ['write'] });
    const { status, body } = await as(writer.token).post('/v1/access-tokens', { ...input, scopes: ['read', 'write'] });
    t.equal(status, 403);
    t.match(body.detail, /scope read/);
    t.equal((await as(writer.token).post('/v1/access-tokens', { ...input, scopes: ['write'] })).status, 201);
  });

  await t.test('an admin has an e-mail address and cannot create operators', async (t) => {
    const { email, ...nameless } = input;
    const { body } = await admin.post('/v1/access-tokens', nameless);
    t.equal(body.errors[0].path, 'body.email');
    t.equal((await admin.post('/v1/access-tokens', { ...input, role: 'operator' })).status, 400);
    const past = await admin.post('/v1/access-tokens', { ...input, expiresAt: '2020-01-01T00:00:00Z' });
    t.equal(past.body.errors[0].path, 'body.expiresAt');
  });

  await t.test('a deleted token is rejected from the next request on', async (t) => {
    const { body } = await admin.post('/v1/access-tokens', input);
    const newAdmin = as(body.token);
    t.equal((await newAdmin.get('/v1/keys')).status, 200);
    const { body: deleted } = await admin.delete(`/v1/access-tokens/${body.id}`);
    t.ok(deleted.deletedAt);
    t.equal((await newAdmin.get('/v1/keys')).status, 401);
    t.equal((await admin.delete(`/v1/access-tokens/${body.id}`)).body.code, 'already_deleted');
    t.notOk((await admin.get('/v1/access-tokens')).body.data.some((item: Json) => item.id === body.id));
    t.equal((await admin.get('/v1/history?limit=1')).body.data[0].action, 'access_token.deleted');
  });
});

t.test('a verifier needs the scope read', async (t) => {
  const { admin, operator } = await startService(t);
  for (const caller of [admin, operator]) {
    const { status, body } = await caller.post('/v1/access-tokens', { role: 'verifier', name: 'X', scopes: ['write'] });
    t.equal(status, 400);
    t.match(body.errors, [{ path: 'body.scopes', message: /needs the scope read/ }]);
  }
});

t.test('an organization keeps an admin with the scope write, unless an operator deletes the last one', async (t) => {
  const { admin, operator, organizationId, as } = await startService(t);
  const inOrganization = { 'latchkey-organization': organizationId };
  const { body: list } = await admin.get('/v1/access-tokens');
  const first = list.data.find(({ role }: Json) => role === 'admin');
  const input = { role: 'admin', name: 'Bob', email: 'bob@example.com' };
  await admin.post('/v1/access-tokens', { ...input, scopes: ['read'] });
  await admin
    .post('/v1/access-tokens', { ...input, scopes: ['write'], expiresAt: '2999-01-01T00:00:00Z' })
    .then(async ({ body: other }) => {
      t.equal((await admin.delete(`/v1/access-tokens/${other.id}`)).status, 200, 'while there is another one');
    });
  const refused = await admin.delete(`/v1/access-tokens/${first.id}`);
  t.equal(refused.status, 403);
  t.match(refused.body, { code: 'forbidden', detail: /last access token of an admin with the scope write/ });
  t.equal((await admin.get('/v1/history?limit=1')).body.data[0].action, 'access_token.deleted', 'of the other one');

  await t.test('if the last two admins delete themselves at once, only one succeeds', async (t) => {
    const tokens = [first, (await admin.post('/v1/access-tokens', { ...input, scopes: ['read', 'write'] })).body];
    const replies = await Promise.all([
      admin.delete(`/v1/access-tokens/${tokens[0].id}`),
      as(tokens[1].token).delete(`/v1/access-tokens/${tokens[1].id}`),
    ]);
    t.same(replies.map(({ status }) => status).sort(), [200, 403]);
  });

  await t.test('if the last two admins delete each other at once, one stays', async (t) => {
    for (let round = 0; round < 4; round++) {
      const { body: present } = await operator.get('/v1/access-tokens', inOrganization);
      for (const { id } of present.data) {
        await operator.delete(`/v1/access-tokens/${id}`, inOrganization);
      }
      const create = async () =>
        (await operator.post('/v1/access-tokens', { ...input, scopes: ['write'] }, inOrganization)).body;
      const [one, two] = [await create(), await create()];
      const replies = await Promise.all([
        as(one.token).delete(`/v1/access-tokens/${two.id}`),
        as(two.token).delete(`/v1/access-tokens/${one.id}`),
      ]);
      t.equal(replies.filter(({ status }) => status === 200).length, 1);
      t.equal(replies.filter(({ status }) => status === 401 || status === 403).length, 1);
      const { body: left } = await operator.get('/v1/access-tokens', inOrganization);
      t.equal(left.data.length, 1);
    }
  });

  const { body: remaining } = await operator.get('/v1/access-tokens', inOrganization);
  const last = remaining.data.find(({ role, scopes }: Json) => role === 'admin' && scopes.includes('write'));
  t.equal((await operator.delete(`/v1/access-tokens/${last.id}`, inOrganization)).status, 200);
  const { body: history } = await operator.get('/v1/history?limit=1', inOrganization);
  t.match(history.data, [{ action: 'access_token.deleted', actor: { type: 'operator' } }]);
});

t.test('an operator', async (t) => {
  const service = await startService(t);
  const { operator, admin, as } = service;

  await t.test('an operator creates an organization and its first admin, who sees no other organization', async (t) => {
    const { status, headers, body: organization } = await operator.post('/v1/organizations', { name: 'Second' });
    t.equal(status, 201);
    t.equal(headers['location'], `/v1/organizations/${organization.id}`);
    const inOrganization = { 'latchkey-organization': organization.id };
    const input = { role: 'admin', scopes: ['read', 'write'], name: 'Eve', email: 'eve@second.example' };
    const { body: token } = await operator.post('/v1/access-tokens', input, inOrganization);
    const secondAdmin = as(token.token);
    t.equal((await secondAdmin.get('/v1/organization')).body.name, 'Second');
    const { body: history } = await secondAdmin.get('/v1/history');
    t.match(history.data, [
      { action: 'access_token.created', actor: { type: 'operator' }, organizationId: organization.id },
      { action: 'organization.created', sequence: 1 },
    ]);
    t.same((await secondAdmin.get('/v1/keys')).body.data, []);
  });

  await t.test('an operator acts in the selected organization, and history names it as operator', async (t) => {
    const inOrganization = { 'latchkey-organization': service.organizationId };
    const { status, body: key } = await operator.post('/v1/keys', {}, inOrganization);
    t.equal(status, 201);
    t.match((await admin.get('/v1/history?limit=1')).body.data[0], {
      action: 'key.created',
      keyId: key.id,
      actor: {
        type: 'operator',
        id: service.bootstrapped.operatorToken.reveal().replace(/^lk_o_(.{26}).*/, 'token_$1'),
      },
    });
    t.equal((await operator.post(`/v1/keys/${key.id}/reveal`, {}, inOrganization)).status, 403, 'but does not reveal');
  });

  await t.test('an operator lists, reads and changes organizations', async (t) => {
    const { body: list } = await operator.get('/v1/organizations');
    t.equal(list.data.length, 2);
    const [second] = list.data;
    t.equal((await operator.get(`/v1/organizations/${second.id}`)).body.name, 'Second');
    t.equal((await operator.patch(`/v1/organizations/${second.id}`, { name: 'Renamed' })).body.name, 'Renamed');
    t.equal((await operator.get('/v1/organizations/nonsense')).status, 404);
  });

  await t.test(
    "an operator creates operators and installation-wide verifiers, recorded in the installation's history",
    async (t) => {
      const { body: second } = await operator.post('/v1/access-tokens', {
        role: 'operator',
        scopes: ['read'],
        name: 'Second operator',
      });
      t.equal(second.organizationId, null);
      t.equal((await as(second.token).get('/v1/organizations')).status, 200);
      t.equal((await operator.post('/v1/access-tokens', { role: 'admin', scopes: ['read'], name: 'x' })).status, 400);
      const { body: history } = await operator.get('/v1/history');
      t.match(history.data[0], { action: 'access_token.created', organizationId: null, details: { role: 'operator' } });
      t.match((await operator.get('/v1/history/verify')).body, { valid: true });
      t.notOk(
        (await admin.get('/v1/history?limit=200')).body.data.some((event: Json) => event.organizationId === null),
      );
    },
  );
});

t.test('a credential describes itself', async (t) => {
  const { admin, verifier, operator, as, organizationId } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', { name: 'Mine', scopes: ['invoices:read'] });
  t.match((await as(key.key).get('/v1/self')).body, {
    kind: 'api_key',
    id: key.id,
    organizationId,
    partnerId: null,
    name: 'Mine',
    permission: 'read_write',
    role: null,
    scopes: ['invoices:read'],
    rateLimit: { requests: 1_000, windowSeconds: 60 },
  });
  t.match((await verifier.get('/v1/self')).body, { kind: 'access_token', role: 'verifier', scopes: ['read'] });
  t.match((await operator.get('/v1/self')).body, { role: 'operator', organizationId: null, permission: null });
  await admin.delete(`/v1/keys/${key.id}`);
  t.equal((await as(key.key).get('/v1/self')).status, 401);
});

t.test('an unknown organization in a header that a route does not need is a bad request, not 404', async (t) => {
  const { admin, verifier, operator, as, organizationId } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const unknown = { 'latchkey-organization': newId('org') };
  const use = { key: key.key, permission: 'read' };
  for (const [what, reply] of Object.entries({
    self: await admin.get('/v1/self', unknown),
    verify: await verifier.post('/v1/verify', use, unknown),
    batch: await verifier.post('/v1/verify/batch', { keys: [use] }, unknown),
    changes: await verifier.get('/v1/changes', unknown),
    organizations: await operator.get('/v1/organizations', unknown),
    'a new organization': await operator.post('/v1/organizations', { name: 'Other' }, unknown),
  })) {
    t.match([reply.status, reply.body.code], [400, 'bad_request'], what);
  }
  t.match(await as(key.key).get('/v1/self', unknown), { status: 200 }, 'a key has only its own organization');
  t.match(await verifier.post('/v1/verify', use, { 'latchkey-organization': organizationId }), { status: 200 });
  t.match(await operator.get('/v1/organizations', { 'latchkey-organization': organizationId }), { status: 200 });
});
