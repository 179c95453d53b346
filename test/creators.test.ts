import { type Actor, type CreatorChain, extendChain, topmostAdminOf } from '../src/domain/actor.ts';
import { type Client, startService, type TestService } from './support/app.ts';
import { t } from './support/tap.ts';

const inOrganization = ({ organizationId }: TestService) => ({ 'latchkey-organization': organizationId });

async function create(service: TestService, by: Client, input: Record<string, unknown>, headers = {}) {
  const scopes = ['read', 'write', 'reveal'];
  const { status, body } = await by.post('/v1/access-tokens', { scopes, ...input }, headers);
  t.equal(status, 201);
  return { id: body.id as string, client: service.as(body.token), body };
}

t.test('an operator that reveals a key with a token it created, and deletes the token, is named', async (t) => {
  const service = await startService(t);
  const { admin, operator } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const first = (await operator.get('/v1/self')).body;
  const second = await create(service, operator, { role: 'operator', name: 'Oscar' });
  const input = { role: 'admin', name: 'Nobody', email: 'nobody@example.com' };
  const direct = await create(service, second.client, input, inOrganization(service));
  const hidden = await create(service, direct.client, input);
  t.equal((await hidden.client.post(`/v1/keys/${key.id}/reveal`)).status, 200);
  for (const { id } of [hidden, direct]) await operator.delete(`/v1/access-tokens/${id}`, inOrganization(service));
  await operator.delete(`/v1/access-tokens/${second.id}`);

  const root = { type: 'operator', id: first.id, name: 'First operator', email: null };
  const ids = [first.id, second.id, direct.id];
  const { body: history } = await admin.get(`/v1/history?action=key.revealed&keyId=${key.id}`);
  t.same(history.data[0].actor, {
    type: 'admin',
    id: hidden.id,
    name: 'Nobody',
    email: 'nobody@example.com',
    createdByRoot: root,
    createdByIds: ids,
  });
  const [viewer] = (await admin.get(`/v1/keys/${key.id}/viewers`)).body.data;
  t.same(viewer.admin, history.data[0].actor);
  t.match(viewer.tokenCreatedBy, { type: 'admin', id: direct.id, createdByRoot: root });
  t.match(viewer.tokenCreatorChain, [
    { type: 'system', id: 'bootstrap' },
    root,
    { type: 'operator', id: second.id, name: 'Oscar' },
    { type: 'admin', id: direct.id },
  ]);
  t.equal(viewer.tokenCreatorChain.length, 4);
  t.equal((await admin.get('/v1/history/verify')).body.valid, true);
});

t.test('all events of such a token name its root, as do the tokens that it creates', async (t) => {
  const service = await startService(t);
  const { admin, operator } = service;
  const { id } = (await operator.get('/v1/self')).body;
  const input = { role: 'admin', name: 'Nobody', email: 'nobody@example.com' };
  const hidden = await create(service, operator, input, inOrganization(service));
  const { body: key } = await hidden.client.post('/v1/keys', {});
  t.match(key.createdBy, { id: hidden.id, createdByRoot: { type: 'operator', id } });
  await hidden.client.delete(`/v1/keys/${key.id}`);
  const { body: history } = await admin.get(`/v1/keys/${key.id}/history`);
  for (const { actor } of history.data) t.match(actor, { createdByRoot: { id }, createdByIds: [id] });
  const own = (await admin.get('/v1/history?limit=1&action=access_token.created')).body.data[0].actor;
  t.equal(own.id, id);
  t.notOk('createdByRoot' in own, 'an operator of the bootstrap has no other root');
});

t.test('the creator chain depends only on the caller, and is shown with the token', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { id } = (await admin.get('/v1/self')).body;
  const input = { role: 'verifier', name: 'Backend', scopes: ['read'] };
  for (const member of ['creatorChain', 'createdBy', 'createdByRoot']) {
    t.match(await admin.post('/v1/access-tokens', { ...input, [member]: [] }), {
      status: 400,
      body: { code: 'validation_failed', errors: [{ path: `body.${member}` }] },
    });
  }
  const { body } = await create(service, admin, input);
  t.match(body.creatorChain, [{ id: 'bootstrap' }, { id }]);
  t.same((await admin.get(`/v1/access-tokens/${body.id}`)).body.creatorChain, body.creatorChain);
});

t.test('a creator chain has a maximum length, but keeps its root and its topmost admin', async (t) => {
  const named = (type: Actor['type'], id: string): Actor => ({ type, id, name: id, email: null });
  for (const operators of [1, 30, 31, 40]) {
    let chain: CreatorChain = extendChain([], named('system', 'bootstrap'));
    for (let round = 1; round <= operators; round++) chain = extendChain(chain, named('operator', `operator-${round}`));
    for (let round = 1; round <= 100; round++) {
      chain = extendChain(chain, { ...named('admin', `admin-${round}`), createdByIds: ['x'] });
      t.equal(topmostAdminOf(chain)?.id, 'admin-1');
      t.equal(chain.at(-1)?.id, `admin-${round}`);
    }
    t.same([chain[0]?.id, chain[1]?.id, chain.length], ['bootstrap', 'operator-1', 32]);
    t.notMatch(JSON.stringify(chain), 'createdByIds', 'no chain within a chain');
  }
});
