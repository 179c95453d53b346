import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { t } from './support/tap.ts';

async function adminNamed(
  { admin, as }: TestService,
  name: string,
  creator = admin,
  headers = {},
): Promise<{ client: Client; id: string }> {
  const input = {
    role: 'admin',
    scopes: ['read', 'write', 'reveal'],
    name,
    email: `${name.toLowerCase()}@example.com`,
  };
  const { body } = await creator.post('/v1/access-tokens', input, headers);
  return { client: as(body.token), id: body.id };
}

t.test(
  "a key's viewers are listed with number, times and reasons of reveals and the creator of their token",
  async (t) => {
    const service = await startService(t);
    const { admin } = service;
    const { body: key } = await admin.post('/v1/keys', {});
    const { body: other } = await admin.post('/v1/keys', {});
    const otherAdmin = await adminNamed(service, 'Bob');
    t.same((await admin.get(`/v1/keys/${key.id}/viewers`)).body, { data: [], nextCursor: null });

    await otherAdmin.client.post(`/v1/keys/${key.id}/reveal`, { reason: 'Moved', recipient: 'ops@partner.example' });
    await admin.post(`/v1/keys/${key.id}/reveal`);
    await admin.post(`/v1/keys/${other.id}/reveal`, { reason: 'Another key' });
    await otherAdmin.client.post(`/v1/keys/${key.id}/reveal`, { reason: 'Moved again' });

    const { body } = await admin.get(`/v1/keys/${key.id}/viewers`);
    const { body: history } = await admin.get(`/v1/history?action=key.revealed&keyId=${key.id}`);
    const [third, second, first] = history.data as [Json, Json, Json];
    t.equal(third.details.reason, 'Moved again');
    t.same(body.nextCursor, null);
    t.match(body.data, [
      {
        admin: { type: 'admin', name: 'First admin', email: 'ada@example.com' },
        tokenCreatedBy: { type: 'system', id: 'bootstrap' },
        times: 1,
        first: second.at,
        last: second.at,
      },
      {
        admin: { type: 'admin', id: otherAdmin.id, name: 'Bob', email: 'bob@example.com' },
        tokenCreatedBy: { type: 'admin', email: 'ada@example.com' },
        times: 2,
        first: first.at,
        last: third.at,
      },
    ]);
    t.same(body.data[0].looks, [{ at: second.at, reason: null, recipient: null }]);
    t.same(body.data[1].looks, [
      { at: third.at, reason: 'Moved again', recipient: null },
      { at: first.at, reason: 'Moved', recipient: 'ops@partner.example' },
    ]);

    await admin.delete(`/v1/access-tokens/${otherAdmin.id}`);
    await admin.delete(`/v1/keys/${key.id}`);
    t.same(
      (await admin.get(`/v1/keys/${key.id}/viewers`)).body,
      body,
      'viewers are listed even if their token or the key is deleted',
    );
    t.equal((await admin.get('/v1/keys/key_01k9s3v5wqe8n8x4r2m6t7yb0c/viewers')).status, 404);
  },
);

t.test('a rejected reveal adds no viewer', async (t) => {
  const service = await startService(t, { limits: { callerLimit: 1e6, addressLimit: 1e6, revealLimit: 1 } });
  const { admin, operator, organizationId } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const otherAdmin = await adminNamed(service, 'Bob', operator, { 'latchkey-organization': organizationId });
  t.equal(
    (await operator.post(`/v1/keys/${key.id}/reveal`, {}, { 'latchkey-organization': organizationId })).status,
    403,
  );
  t.equal((await otherAdmin.client.post(`/v1/keys/${key.id}/reveal`)).status, 200);
  t.equal((await otherAdmin.client.post(`/v1/keys/${key.id}/reveal`)).status, 429);
  await admin.delete(`/v1/keys/${key.id}`);
  t.equal((await admin.post(`/v1/keys/${key.id}/reveal`)).body.code, 'already_deleted');
  const { body } = await admin.get(`/v1/keys/${key.id}/viewers`);
  t.match(body.data, [{ admin: { name: 'Bob' }, times: 1 }]);
  t.equal(body.data.length, 1);
});

t.test('no page omits a viewer who reveals the key again between two pages', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const names = ['A', 'B', 'C', 'D', 'E'];
  const viewers = await Promise.all(names.map((name) => adminNamed(service, name)));
  for (const { client } of viewers) await client.post(`/v1/keys/${key.id}/reveal`);
  const found: string[] = [];
  for (let cursor = ''; ; ) {
    const { body } = await admin.get(`/v1/keys/${key.id}/viewers?limit=2${cursor}`);
    found.push(...body.data.map((viewer: Json) => viewer.admin.name));
    if (body.nextCursor === null) break;
    cursor = `&cursor=${body.nextCursor}`;
    for (const { client } of viewers) await client.post(`/v1/keys/${key.id}/reveal`);
  }
  t.same(found, names.toReversed());
  for (const cursor of ['x', Buffer.from('0').toString('base64url')]) {
    t.equal((await admin.get(`/v1/keys/${key.id}/viewers?cursor=${cursor}`)).body.code, 'cursor_invalid');
  }
});

t.test('the last reveals are listed, and all are counted', async (t) => {
  const { admin } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  for (let round = 1; round <= 23; round++) await admin.post(`/v1/keys/${key.id}/reveal`, { reason: `Look ${round}` });
  const [viewer] = (await admin.get(`/v1/keys/${key.id}/viewers`)).body.data;
  t.equal(viewer.times, 23);
  t.same(
    viewer.looks.map((look: Json) => look.reason),
    Array.from({ length: 20 }, (_, index) => `Look ${23 - index}`),
  );
  t.equal(viewer.looks[0].at, viewer.last);
});
