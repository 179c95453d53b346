import { accessesInput } from '../src/http/schemas.ts';
import { startService } from './support/app.ts';
import { oidcOf, startIssuer } from './support/issuer.ts';
import { t } from './support/tap.ts';

const person = { role: 'admin', name: 'Bob', email: 'bob@example.com' };
const inOrganization = ({ organizationId }: { organizationId: string }) => ({
  'latchkey-organization': organizationId,
});

t.test('only a token with the scope reveal reveals a key, and the rejection says how to get it', async (t) => {
  const { admin, as } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const tokenWith = async (scopes: string[]) =>
    as((await admin.post('/v1/access-tokens', { ...person, scopes })).body.token);

  const writer = await tokenWith(['read', 'write']);
  const rejected = await writer.post(`/v1/keys/${key.id}/reveal`);
  t.match(rejected, { status: 403, body: { code: 'scope_missing', requiredScope: 'reveal' } });
  t.match(rejected.body.detail, 'This needs the scope reveal. The token has only read write.');
  t.match(rejected.body.detail, /can create another token with it/);
  t.match(rejected.headers['www-authenticate'], 'error="insufficient_scope", scope="reveal"');
  t.equal((await writer.post('/v1/keys', {})).status, 201, 'it still creates keys and receives their plaintexts');

  const viewer = await tokenWith(['reveal']);
  t.match(await viewer.post(`/v1/keys/${key.id}/reveal`), { status: 200, body: { key: key.key } });
  t.match((await viewer.get('/v1/self')).body, { scopes: ['reveal'] });
  for (const call of [viewer.get('/v1/keys'), viewer.post('/v1/keys', {})]) {
    t.match(await call, { status: 403, body: { code: 'scope_missing' } });
  }
  const { body: events } = await admin.get('/v1/history?action=key.revealed');
  t.equal(events.data.length, 1, 'a rejected reveal is not a reveal');
});

t.test('the first tokens have the scopes read, write and reveal', async (t) => {
  const { admin, operator } = await startService(t);
  for (const first of [admin, operator]) {
    t.same((await first.get('/v1/self')).body.scopes, ['read', 'write', 'reveal']);
  }
});

t.test('the scopes of a token come in one order, each once', async (t) => {
  const { admin } = await startService(t);
  const create = (scopes: string[]) => admin.post('/v1/access-tokens', { ...person, scopes });
  for (const [given, shown] of [
    [
      ['reveal', 'write', 'read'],
      ['read', 'write', 'reveal'],
    ],
    [
      ['reveal', 'read'],
      ['read', 'reveal'],
    ],
    [
      ['reveal', 'write'],
      ['write', 'reveal'],
    ],
  ] as const) {
    const { status, body } = await create([...given]);
    t.equal(status, 201);
    t.same(body.scopes, shown);
    const { body: history } = await admin.get('/v1/history?limit=1');
    t.match(history.data[0], { action: 'access_token.created', details: { scopes: shown } });
  }
  const twice = await create(['reveal', 'reveal']);
  t.match(twice, { status: 400, body: { errors: [{ path: 'body.scopes', message: /must not name a scope twice/ }] } });
  t.notOk(accessesInput.safeParse(['reveal']).success, 'it is no permission of keys and partners');
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('no caller gives the scope reveal without having it, also an operator and a person', async (t) => {
  const issuer = await startIssuer(t);
  const service = await startService(t, { oidc: oidcOf(issuer, { claim: 'organization', ids: undefined }) });
  const { admin, operator, as, organizationId } = service;
  issuer.people.set('wim', { organization: organizationId, roles: ['latchkey-read', 'latchkey-write'] });
  const wim = as((await issuer.tokensOf('wim')).accessToken);
  const both = ['read', 'write'];
  const { body: writer } = await admin.post('/v1/access-tokens', { ...person, scopes: both });
  const { body: automat } = await operator.post('/v1/access-tokens', {
    role: 'operator',
    name: 'Automat',
    scopes: both,
  });
  const wider = { ...person, scopes: ['read', 'reveal'] };
  for (const [caller, headers] of [
    [as(writer.token), {}],
    [wim, {}],
    [as(automat.token), inOrganization(service)],
  ] as const) {
    const { status, body } = await caller.post('/v1/access-tokens', wider, headers);
    t.equal(status, 403);
    t.match(body.detail, /lacks the scope reveal/);
    t.equal((await caller.post('/v1/access-tokens', { ...person, scopes: both }, headers)).status, 201);
  }
  const given = await operator.post('/v1/access-tokens', wider, inOrganization(service));
  t.equal(given.status, 201, 'an operator that has the scope gives it to the first admin of an organization');

  const { body: key } = await admin.post('/v1/keys', {});
  const rejected = await wim.post(`/v1/keys/${key.id}/reveal`);
  t.match(rejected, { status: 403, body: { requiredScope: 'reveal', detail: /roles in OIDC_REVEAL_ROLES/ } });
  issuer.people.set('rita', { organization: organizationId, roles: ['latchkey-reveal'] });
  const rita = as((await issuer.tokensOf('rita')).accessToken);
  t.match(await rita.post(`/v1/keys/${key.id}/reveal`), { status: 200, body: { key: key.key } });
  t.match(await rita.get('/v1/keys'), { status: 403, body: { requiredScope: 'read' } });
});
