import type { Test } from 'tap';
import { newId, type OrganizationId } from '../src/domain/ids.ts';
import { type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { type Issuer, oidcOf, startIssuer } from './support/issuer.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { bodiesFor } from './support/webhooks.ts';

const all = ['latchkey-read', 'latchkey-write', 'latchkey-reveal'];
const generous = { callerLimit: 1e6, addressLimit: 1e6, revealLimit: 1e6 };

/** A service whose admins come from an issuer that names the organization in the claim `organization`. */
async function startWithPeople(t: Test, limits = generous, map?: Map<string, OrganizationId>) {
  const issuer = await startIssuer(t);
  const organization = { claim: 'organization', ids: map };
  const service = await startService(t, { limits, oidc: oidcOf(issuer, organization) });
  const addPerson = (subject: string, claims: Record<string, unknown> = {}) =>
    issuer.people.set(subject, { organization: service.organizationId, roles: all, ...claims });
  const login = async (subject: string) => service.as((await issuer.tokensOf(subject)).accessToken);
  return { ...service, issuer, addPerson, login };
}

const idOf = (issuer: Issuer, subject: string) => `${issuer.url}#${subject}`;

t.test('a person of the identity provider is an admin, and history names the person', async (t) => {
  const service = await startWithPeople(t);
  const { issuer, addPerson, login, organizationId, admin } = service;
  addPerson('ada', { name: 'Ada Admin', email: 'ada@company.example' });
  const ada = await login('ada');
  const actor = {
    type: 'admin',
    id: idOf(issuer, 'ada'),
    name: 'Ada Admin',
    email: 'ada@company.example',
    issuer: issuer.url,
    subject: 'ada',
  };

  const self = await ada.get('/v1/self');
  t.match(self, {
    status: 200,
    body: {
      kind: 'oidc',
      id: actor.id,
      organizationId,
      name: 'Ada Admin',
      role: 'admin',
      scopes: ['read', 'write', 'reveal'],
    },
  });
  t.ok(Date.parse(self.body.expiresAt) > Date.now());
  const created = await ada.post('/v1/keys', { name: 'Made by a person' });
  t.equal(created.status, 201);
  t.same(created.body.createdBy, actor);
  t.equal((await ada.post(`/v1/keys/${created.body.id}/reveal`, { reason: 'lost' })).body.key, created.body.key);

  const { body: history } = await ada.get(`/v1/history?actorId=${encodeURIComponent(actor.id)}`);
  t.same(
    history.data.map(({ action, actor }: Json) => ({ action, actor })),
    [
      { action: 'key.revealed', actor },
      { action: 'key.created', actor },
    ],
  );
  t.match((await ada.get('/v1/history/verify')).body, { valid: true });

  await admin.post(`/v1/keys/${created.body.id}/reveal`, {});
  const { body: viewers } = await ada.get(`/v1/keys/${created.body.id}/viewers`);
  t.match(viewers.data, [
    { admin: { id: /^token_/, name: 'First admin' }, tokenCreatedBy: { type: 'system' } },
    { admin: actor, tokenCreatedBy: null, times: 1 },
  ]);
  t.notOk('issuer' in viewers.data[0].admin);

  const createdToken = await ada.post('/v1/access-tokens', { role: 'verifier', scopes: ['read'], name: 'Backend' });
  t.match(createdToken, { status: 201, body: { createdBy: actor } });
  t.notMatch(service.logLines.join(''), /eyJ[\w-]+\./, 'no token is in the log');
});

t.test('names and e-mail addresses from an issuer are shown without tokens and invisible characters', async (t) => {
  const { addPerson, login, bootstrapped } = await startWithPeople(t);
  const token = bootstrapped.verifierToken.reveal();
  addPerson('eve', { name: `Eve\u202e (${encodeURIComponent(token)})`, email: `eve+${token}@company.example` });
  const otherPerson = await login('eve');
  t.match((await otherPerson.get('/v1/self')).body, {
    name: 'Eve  ([redacted])',
    email: 'eve+[redacted]@company.example',
  });
  const { body: key } = await otherPerson.post('/v1/keys', {});
  t.match(key.createdBy, { name: 'Eve  ([redacted])', email: 'eve+[redacted]@company.example' });
  addPerson(token, { name: 'Eve' });
  t.match(await (await login(token)).get('/v1/self'), { status: 401, body: { code: 'unauthorized' } });
});

t.test('a person gets no more rights than were mapped, and never the role of an operator', async (t) => {
  const { addPerson, login, organizationId, operator, logLines, issuer } = await startWithPeople(t);
  addPerson('rita', { roles: ['latchkey-read', 'operator', 'admin'], role: 'operator', scope: 'write' });
  addPerson('wim', { roles: 'something latchkey-write' });
  const [rita, wim] = [await login('rita'), await login('wim')];
  t.equal((await rita.get('/v1/keys')).status, 200);
  t.match(await rita.post('/v1/keys', {}), { status: 403, body: { code: 'scope_missing', requiredScope: 'write' } });
  t.match(await rita.post('/v1/access-tokens', { role: 'verifier', scopes: ['read'], name: 'x' }), { status: 403 });
  t.equal((await wim.post('/v1/keys', {})).status, 201);
  t.match(await wim.get('/v1/keys'), { status: 403, body: { requiredScope: 'read' } });
  t.match(await wim.post('/v1/access-tokens', { role: 'verifier', scopes: ['read'], name: 'x' }), { status: 403 });
  for (const path of ['/v1/organizations', `/v1/organizations/${organizationId}`]) {
    t.match(await rita.get(path), { status: 403, body: { requiredRole: 'operator' } });
  }
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  for (const named of [other.id, newId('org')]) {
    t.equal((await rita.get('/v1/keys', { 'latchkey-organization': named })).status, 404);
  }
  t.equal((await rita.get('/v1/keys', { 'latchkey-organization': organizationId })).status, 200);
  t.match(await rita.post('/v1/verify', { key: 'x', permission: 'read' }), { status: 403 });

  const refusals = await eventually(async () => {
    const { body } = await rita.get(`/v1/history?kind=refused&actorId=${encodeURIComponent(idOf(issuer, 'rita'))}`);
    return body.data.length >= 4 && body.data;
  });
  t.match(refusals.at(-1), { caller: { type: 'admin', id: idOf(issuer, 'rita') }, operation: 'createKey' });
  t.notMatch(logLines.join(''), /eyJ[\w-]+\./);
});

t.test('the organization comes from the claim, directly or by a table; without one access is rejected', async (t) => {
  const ids = new Map<string, OrganizationId>();
  const { addPerson, login, organizationId, operator } = await startWithPeople(t, generous, ids);
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  ids
    .set('acme', organizationId as OrganizationId)
    .set('globex', other.id)
    .set('gone', newId('org'));
  for (const [organization, id] of [
    ['acme', organizationId],
    [['globex'], other.id],
  ] as const) {
    addPerson('ada', { organization });
    const { body } = await (await login('ada')).get('/v1/organization');
    t.equal(body.id, id);
  }
  for (const organization of [
    undefined,
    '',
    'initech',
    'gone',
    organizationId,
    ['acme', 'globex'],
    {},
    7,
    '__proto__',
  ]) {
    addPerson('ada', { organization });
    const { status, body } = await (await login('ada')).get('/v1/organization');
    t.equal(status, 401, JSON.stringify(organization));
    t.match(body, { code: 'unauthorized', detail: /names (no|an) organization/ });
  }
});

t.test('people of one organization cannot reach another', async (t) => {
  const { addPerson, login, operator, admin } = await startWithPeople(t);
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const { body: key } = await admin.post('/v1/keys', {});
  addPerson('eve', { organization: other.id });
  const otherPerson = await login('eve');
  t.equal((await otherPerson.get(`/v1/keys/${key.id}`)).status, 404);
  t.equal((await otherPerson.post(`/v1/keys/${key.id}/reveal`, {})).status, 404);
  t.same((await otherPerson.get('/v1/keys')).body.data, []);
  addPerson('nobody', { organization: newId('org') });
  t.match(await (await login('nobody')).get('/v1/keys'), {
    status: 401,
    body: { detail: /organization that does not exist/ },
  });
});

t.test('limits and Idempotency-Keys belong to the person, whatever the token', async (t) => {
  const { addPerson, login, admin, urls } = await startWithPeople(t, {
    callerLimit: 6,
    addressLimit: 1e6,
    revealLimit: 1,
  });
  addPerson('ada', { name: 'Ada' });
  addPerson('bob', { name: 'Bob' });
  const [first, second, bob] = [await login('ada'), await login('ada'), await login('bob')];
  t.not(first.token, second.token);
  const once = { 'idempotency-key': 'the same' };
  const { body: key } = await first.post('/v1/keys', {}, once);
  const again = await second.post('/v1/keys', {}, once);
  t.equal(again.headers['idempotent-replayed'], 'true');
  t.same(again.body, key);
  t.equal((await bob.post('/v1/keys', {}, once)).status, 201, 'another person is another caller');
  t.equal((await dbQuery(urls.superuser, 'select 1 from api_keys')).length, 2);

  t.equal((await first.post(`/v1/keys/${key.id}/reveal`, {})).status, 200);
  t.match(await second.post(`/v1/keys/${key.id}/reveal`, {}), { status: 429, body: { detail: /revealed too many/ } });
  t.equal((await bob.post(`/v1/keys/${key.id}/reveal`, {})).status, 200);
  for (let request = 0; request < 2; request++) t.equal((await first.get('/v1/rows')).status, 200);
  t.match(await second.get('/v1/rows'), { status: 429, body: { code: 'rate_limited' } });
  t.equal((await admin.get('/v1/rows')).status, 200);
});

t.test("a partner's webhook does not contain the identities of the organization's people", async (t) => {
  const { addPerson, login, urls } = await startWithPeople(t);
  addPerson('ada', { name: 'Ada', email: 'ada@company.example' });
  const ada = await login('ada');
  const { body: partner } = await ada.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const url = 'http://127.0.0.1:9/';
  const { body: partnerWebhook } = await ada.post('/v1/webhooks', {
    url,
    events: ['key.deleted'],
    partnerId: partner.id,
  });
  const { body: ownWebhook } = await ada.post('/v1/webhooks', { url, events: ['key.deleted'] });
  await ada.delete(`/v1/keys/${partner.keys[0].id}`);
  const actorsFor = async (webhook: Json) =>
    (await bodiesFor({ urls }, webhook, 'key.deleted')).map((body) => JSON.parse(body).data.actor.id);
  t.match(await actorsFor(ownWebhook), [/#ada$/]);
  t.same(await actorsFor(partnerWebhook), ['oidc']);
});

t.test('a JWT is never looked up as an access token, nor the other way round', async (t) => {
  const { addPerson, login, app, admin, issuer, logLines } = await startWithPeople(t);
  addPerson('ada');
  const ada = await login('ada');
  const fetched = issuer.keyFetches();
  t.equal((await app.inject({ url: '/v1/keys', headers: { 'x-api-key': ada.token } })).statusCode, 200);
  t.equal((await admin.get('/v1/keys')).status, 200);
  const gateway = { 'x-latchkey-token': ada.token, 'x-api-key': 'x', 'x-forwarded-method': 'GET' };
  t.equal((await app.inject({ url: '/v1/authorize', headers: gateway })).statusCode, 503);
  t.match(logLines.join(''), /is not the token of a verifier/);
  const asKey = await admin.post('/v1/keys', {});
  t.equal(asKey.status, 201);
  t.equal(issuer.keyFetches(), fetched, 'no further call to the issuer');

  const without = await startService(t);
  t.match(await without.as(ada.token).get('/v1/keys'), { status: 401, body: { code: 'token_malformed' } });
  const verdict = await without.verifier.post('/v1/verify', { key: ada.token, permission: 'read' });
  t.match(verdict.body, { valid: false, code: 'malformed' });
});
