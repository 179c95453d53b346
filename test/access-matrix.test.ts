import fastify, { type RouteOptions } from 'fastify';
import type { Test } from 'tap';
import { addAccessToken, mintAccessToken } from '../src/access-tokens/commands.ts';
import { mintToken } from '../src/crypto/token.ts';
import { transact } from '../src/database/work.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import type { AccessRule } from '../src/http/access.ts';
import { strictRoutes } from '../src/http/strict-routes.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { t } from './support/tap.ts';

// Uses the live list of routes, so that new routes are covered at once.

interface Cast {
  admin: Client;
  adminReadOnly: Client;
  adminWriteOnly: Client;
  verifier: Client;
  verifierWriteOnly: Client;
  operator: Client;
  adminWithoutReveal: Client;
  operatorReadOnly: Client;
  operatorWriteOnly: Client;
  apiKey: Client;
}

async function castOf(service: TestService): Promise<Cast> {
  const { admin, operator, as } = service;
  const createToken = async (creator: Client, role: string, scopes: string[]) => {
    const { status, body } = await creator.post('/v1/access-tokens', {
      role,
      scopes,
      name: 'Cast',
      email: 'c@example.com',
    });
    if (status !== 201) throw new Error(JSON.stringify(body));
    return as(body.token);
  };
  const { body: key } = await admin.post('/v1/keys', {});
  return {
    admin,
    adminReadOnly: await createToken(admin, 'admin', ['read']),
    adminWriteOnly: await createToken(admin, 'admin', ['write']),
    adminWithoutReveal: await createToken(admin, 'admin', ['read', 'write']),
    verifier: service.verifier,
    verifierWriteOnly: as(await formerVerifier(service)),
    operator,
    operatorReadOnly: await createToken(operator, 'operator', ['read']),
    operatorWriteOnly: await createToken(operator, 'operator', ['write']),
    apiKey: as(key.key),
  };
}

/** A new verifier always has the scope `read`. An existing one without it is checked too. */
async function formerVerifier(service: TestService): Promise<string> {
  const { client, keyring, hasher, clock } = service;
  const { organizationId } = service.bootstrapped;
  const token = await mintAccessToken({ prefix: 'lk', keyring, hasher }, 'verifier');
  const actor = { type: 'system', id: 'bootstrap', name: 'bootstrap', email: null } as const;
  const transactor = { db: client.db, keyring, clock, onAppended: enqueueDeliveries };
  await transact(transactor, { actor, organizationId, request: null }, (work) =>
    addAccessToken(work, token, { role: 'verifier', name: 'Cast', email: null, scopes: ['write'], expiresAt: null }),
  );
  return token.plaintext.reveal();
}

/** Ids that exist in the service's organization, for each parameter of a path. */
async function idsOf({ admin, organizationId }: TestService): Promise<Record<string, string>> {
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@partner.example', permissions: ['read'] });
  const { body: tokens } = await admin.get('/v1/access-tokens');
  const { body: deleted } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${deleted.id}`);
  const { body: request } = await admin.post('/v1/recovery-requests', { keyId: deleted.id, details: 'By mistake' });
  const { body: webhook } = await admin.post('/v1/webhooks', { url: 'http://127.0.0.1:9/', events: ['*'] });
  const { body: deliveries } = await admin.get(`/v1/webhooks/${webhook.id}/deliveries`);
  const { body: claim } = await admin.post('/v1/claims', { keyId: partner.keys[0].id });
  return {
    claimId: claim.id,
    webhookId: webhook.id,
    deliveryId: deliveries.data[0].id,
    recoveryRequestId: request.id,
    deletedKeyId: deleted.id,
    keyId: partner.keys[0].id,
    partnerId: partner.id,
    accessTokenId: tokens.data[0].id,
    organizationId,
    code: 'not_found',
  };
}

const unknownIds: Record<string, string> = {
  claimId: newId('claim'),
  keyId: newId('key'),
  partnerId: newId('partner'),
  accessTokenId: newId('token'),
  recoveryRequestId: newId('recovery'),
  webhookId: newId('webhook'),
  deliveryId: newId('delivery'),
  organizationId: newId('org'),
};

function pathOf(route: RouteOptions, ids: Record<string, string>): string {
  return route.url.replaceAll(/:(\w+)/g, (_, name: string) => {
    const id = ids[name];
    if (id === undefined) throw new Error(`the matrix has no id for :${name}`);
    return id;
  });
}

const methodsOf = (route: RouteOptions) => [route.method].flat();
const ruleOf = (route: RouteOptions) => route.config?.access as AccessRule;

/** A body that the route accepts, so that only the access decides. */
const bodies: Record<string, unknown> = {
  'PATCH /v1/keys/:keyId': { name: 'Changed' },
  'PATCH /v1/partners/:partnerId': { name: 'Changed' },
  'PATCH /v1/organizations/:organizationId': { name: 'Changed' },
  'PATCH /v1/webhooks/:webhookId': { description: 'Changed' },
  'POST /v1/webhooks/:webhookId/deliveries/redeliver': { since: '2026-01-01T00:00:00Z' },
};

t.test('every route except the public ones checks credential, role and scope', async (t) => {
  const service = await startService(t, { limits: { callerLimit: 1e6, addressLimit: 1e6, revealLimit: 1e6 } });
  const { app, admin, organizationId } = service;
  const cast = await castOf(service);
  const ids = await idsOf(service);
  const isGateways = (rule: AccessRule) => rule !== 'public' && rule.role === 'gateway';
  const guarded = app.routeList.filter((route) => ruleOf(route) !== 'public' && !isGateways(ruleOf(route)));
  t.ok(guarded.length >= 25, 'the list has the routes of the service');

  const revoked = (await admin.post('/v1/access-tokens', { role: 'verifier', scopes: ['read'], name: 'Revoked' })).body;
  await admin.delete(`/v1/access-tokens/${revoked.id}`);
  const expiresAt = new Date(Date.now() + 60_000).toISOString();
  const expired = (
    await admin.post('/v1/access-tokens', { role: 'verifier', scopes: ['read'], name: 'Expired', expiresAt })
  ).body;
  service.later(120_000);
  const { body: other } = await service.operator.post('/v1/organizations', { name: 'Other' });
  const unknown = mintToken({ prefix: 'lk', kind: 'a', idSuffix: idSuffix(newId('token')) }).reveal();
  const refused: Array<[what: string, token: string | undefined, code: string]> = [
    ['no token', undefined, 'unauthorized'],
    ['a malformed token', `${admin.token.slice(0, -1)}!`, 'token_malformed'],
    ['a token with a wrong checksum', `${admin.token.slice(0, -2)}zz`, 'token_malformed'],
    ['an unknown token', unknown, 'unauthorized'],
    ['a revoked token', revoked.token, 'unauthorized'],
    ['an expired token', expired.token, 'token_expired'],
  ];

  for (const route of guarded) {
    for (const method of methodsOf(route)) {
      const url = pathOf(route, ids);
      const call = async (token: string | undefined, headers: Record<string, string> = {}) => {
        const response = await app.inject({
          method: method as 'GET',
          url,
          headers: { ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...headers },
        });
        const body = method === 'HEAD' ? undefined : response.json();
        return { status: response.statusCode, headers: response.headers, body };
      };
      const isRefused = async (
        t: Test,
        creator: Client,
        status: number,
        code: string,
        headers: Record<string, string> = {},
      ) => {
        const reply = await call(creator.token, headers);
        t.equal(reply.status, status);
        if (reply.body !== undefined) t.equal(reply.body.code, code);
        return reply;
      };

      await t.test(`${method} ${route.url}`, async (t) => {
        const rule = ruleOf(route);
        const isOpen = rule !== 'public' && rule.role === 'admin' && rule.anonymous === true;
        for (const [what, token, code] of refused) {
          if (isOpen && token === undefined) continue;
          const reply = await call(token);
          t.equal(reply.status, 401, what);
          t.match(reply.headers['www-authenticate'], /^Bearer realm="latchkey"/, what);
          if (reply.body !== undefined) t.equal(reply.body.code, code, what);
        }
        if (rule === 'public' || rule.role === 'any' || rule.role === 'gateway') return;
        if (rule.role === 'api_key') {
          for (const role of ['admin', 'verifier', 'operator'] as const)
            await isRefused(t, cast[role], 403, 'forbidden');
          await isRefused(t, cast.apiKey, 403, 'self_service_disabled');
          return;
        }
        await isRefused(t, cast.apiKey, 403, 'forbidden');
        const wrongRoles = { admin: ['verifier'], operator: ['admin', 'verifier'], verifier: ['admin', 'operator'] };
        for (const role of wrongRoles[rule.role] as Array<'admin' | 'operator' | 'verifier'>) {
          const reply = await isRefused(t, cast[role], 403, 'forbidden');
          if (reply.body !== undefined) t.equal(reply.body.requiredRole, rule.role);
        }
        const wrongScope = { read: 'WriteOnly', write: 'ReadOnly', reveal: 'WithoutReveal' }[rule.scope];
        if (rule.role !== 'verifier' || wrongScope === 'WriteOnly') {
          const reply = await isRefused(t, cast[`${rule.role}${wrongScope}` as keyof Cast], 403, 'scope_missing');
          if (reply.body !== undefined) t.equal(reply.body.requiredScope, rule.scope);
          t.match(reply.headers['www-authenticate'], `error="insufficient_scope", scope="${rule.scope}"`);
        }
        if (rule.role !== 'admin') return;
        const inOrganization = { 'latchkey-organization': organizationId };
        if (rule.operator === false) {
          await isRefused(t, cast.operator, 403, 'forbidden', inOrganization);
          return;
        }
        await isRefused(t, cast[`operator${wrongScope}` as keyof Cast], 403, 'scope_missing', inOrganization);
        await isRefused(t, cast.operator, 404, 'not_found', { 'latchkey-organization': newId('org') });
        for (const named of [newId('org'), other.id]) {
          await isRefused(t, cast.admin, 404, 'not_found', { 'latchkey-organization': named });
        }
        if (rule.installation !== true) await isRefused(t, cast.operator, 400, 'bad_request');
      });
    }
  }
});

t.test('a gateway route replies 503 to a caller that is not a verifier, and logs the reason', async (t) => {
  const service = await startService(t);
  const { app, logLines } = service;
  const cast = await castOf(service);
  const key = cast.apiKey.token;
  const gateways = app.routeList.filter((route) => {
    const rule = ruleOf(route);
    return rule !== 'public' && rule.role === 'gateway';
  });
  t.ok(gateways.flatMap(methodsOf).length >= 14);
  const otherCallers: Array<[what: string, headers: Record<string, string>]> = [
    ['no token', {}],
    ['a malformed token', { 'x-latchkey-token': 'nonsense' }],
    ["the verifier's token in the wrong header", { authorization: `Bearer ${cast.verifier.token}` }],
    ['an API key', { 'x-latchkey-token': key }],
    ['an admin', { 'x-latchkey-token': cast.admin.token }],
    ['an operator', { 'x-latchkey-token': cast.operator.token }],
    ['a verifier without the scope read', { 'x-latchkey-token': cast.verifierWriteOnly.token }],
  ];
  for (const route of gateways) {
    for (const method of methodsOf(route)) {
      for (const [what, headers] of otherCallers) {
        const before = logLines.length;
        const response = await app.inject({
          method: method as 'GET',
          url: route.url,
          headers: { 'x-api-key': key, 'x-forwarded-method': 'GET', ...headers },
        });
        t.equal(response.statusCode, 503, `${method} ${route.url}: ${what}`);
        t.match(logLines.slice(before).join(''), 'is not the token of a verifier');
      }
    }
  }
});

t.test('ids of another organization are treated like unknown ids', async (t) => {
  const service = await startService(t);
  const { app, operator } = service;
  const ownIds = await idsOf(service);
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  const token = { role: 'admin', scopes: ['read', 'write', 'reveal'], name: 'Eve', email: 'eve@example.com' };
  const { body: otherToken } = await operator.post('/v1/access-tokens', token, inOther);
  const otherAdmin = service.as(otherToken.token);

  const withIds = app.routeList.filter((route) => {
    const rule = ruleOf(route);
    return rule !== 'public' && rule.role === 'admin' && route.url.includes(':');
  });
  t.ok(withIds.length >= 8);
  for (const route of withIds) {
    for (const method of methodsOf(route).filter((method) => method !== 'HEAD')) {
      await t.test(`${method} ${route.url}`, async (t) => {
        const answers = [];
        for (const ids of [ownIds, unknownIds]) {
          const response = await app.inject({
            method: method as 'GET',
            url: pathOf(route, ids),
            headers: { authorization: `Bearer ${otherAdmin.token}` },
            ...(bodies[`${method} ${route.url}`] === undefined
              ? {}
              : { payload: bodies[`${method} ${route.url}`] as object }),
          });
          t.equal(response.statusCode, 404);
          const { requestId, traceId, ...body } = response.json() as Json;
          answers.push(body);
        }
        t.same(answers[0], answers[1]);
      });
    }
  }

  await t.test('ids in bodies and filters are treated the same', async (t) => {
    const created = await otherAdmin.post('/v1/keys', { partnerId: ownIds['partnerId'] });
    t.equal(created.status, 404);
    for (const subject of [{ keyId: ownIds['deletedKeyId'] }, { partnerId: ownIds['partnerId'] }]) {
      t.equal((await otherAdmin.post('/v1/recovery-requests', { ...subject, details: 'Mine' })).status, 404);
    }
    t.same((await otherAdmin.get('/v1/recovery-requests')).body.data, []);
    for (const subject of [
      { keyId: ownIds['keyId'] },
      { rotate: { keyId: ownIds['keyId'] } },
      { newKey: { partnerId: ownIds['partnerId'] } },
    ]) {
      t.equal((await otherAdmin.post('/v1/claims', subject)).status, 404);
    }
    t.same((await otherAdmin.get(`/v1/claims?keyId=${ownIds['keyId']}`)).body.data, []);
    t.same((await otherAdmin.get(`/v1/claims?partnerId=${ownIds['partnerId']}`)).body.data, []);
    t.same((await otherAdmin.get(`/v1/keys?partnerId=${ownIds['partnerId']}`)).body.data, []);
    t.same((await otherAdmin.get(`/v1/history?keyId=${ownIds['keyId']}`)).body.data, []);
    t.same((await otherAdmin.get(`/v1/history?partnerId=${ownIds['partnerId']}`)).body.data, []);
  });

  await t.test('the rejected attempts have changed nothing', async (t) => {
    const { body: key } = await service.admin.get(`/v1/keys/${ownIds['keyId']}`);
    t.match(key, { status: 'active', name: null });
    const { body: partner } = await service.admin.get(`/v1/partners/${ownIds['partnerId']}`);
    t.match(partner, { status: 'active', name: null });
  });
});

t.test('a route for anonymous requests takes them, and rejects a credential that may not be used there', async (t) => {
  const { app } = await startService(t);
  const open = app.routeList.filter((route) => {
    const rule = ruleOf(route);
    return rule !== 'public' && rule.role === 'admin' && rule.anonymous === true;
  });
  t.same(
    open.map(({ method, url }) => [method, url]),
    [['POST', '/v1/leaks']],
  );
  const payload = { key: 'any text' };
  t.equal((await app.inject({ method: 'POST', url: '/v1/leaks', payload })).statusCode, 202);
  const headers = { authorization: 'Bearer nonsense' };
  t.equal((await app.inject({ method: 'POST', url: '/v1/leaks', payload, headers })).statusCode, 401);
});

t.test('public routes need no credential and ignore an invalid one', async (t) => {
  const { app } = await startService(t);
  for (const url of ['/livez', '/readyz', '/openapi.json', '/docs', '/problems', '/problems/row_full', '/claim']) {
    for (const headers of [{}, { authorization: 'Bearer nonsense' }]) {
      const response = await app.inject({ url, headers });
      t.ok([200, 302].includes(response.statusCode), `${url}: ${response.statusCode}`);
    }
  }
});

t.test(
  'the service does not start with a route without declared access, reply or, for POST, retry behavior',
  async (t) => {
    const app = fastify();
    await app.register(strictRoutes, { tokenPrefix: 'lk' });
    t.throws(
      () => app.get('/open', { schema: { response: { 200: {} } } }, async () => ({})),
      /declares no config.access/,
    );
    t.throws(
      () => app.get('/open', { config: { access: 'public' } }, async () => ({})),
      /declares no response schema for its success/,
    );
    const changing: AccessRule[] = [
      { role: 'admin', scope: 'write' },
      { role: 'operator', scope: 'write' },
    ];
    for (const access of changing) {
      t.throws(
        () => app.post('/change', { config: { access }, schema: { response: { 200: {} } } }, async () => ({})),
        /POST \/change declares no config.idempotencyKey/,
      );
    }
  },
);
