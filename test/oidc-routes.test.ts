import { newId } from '../src/domain/ids.ts';
import { tokenScopes } from '../src/domain/permissions.ts';
import type { AccessRule } from '../src/http/access.ts';
import { startService } from './support/app.ts';
import { oidcOf, startIssuer } from './support/issuer.ts';
import { t } from './support/tap.ts';

// Checks the live list of routes, like the access matrix.

t.test('on every route a person gets the same reply as an admin token with the same scopes', async (t) => {
  const issuer = await startIssuer(t);
  const service = await startService(t, { oidc: oidcOf(issuer, { claim: 'organization', ids: undefined }) });
  const { app, admin, as, organizationId } = service;
  const pairs = [];
  for (const scope of tokenScopes) {
    const input = { role: 'admin', scopes: [scope], name: 'Same', email: 'same@example.com' };
    const { body } = await admin.post('/v1/access-tokens', input);
    issuer.people.set(scope, { organization: organizationId, roles: [`latchkey-${scope}`] });
    pairs.push({ scope, token: as(body.token), person: as((await issuer.tokensOf(scope)).accessToken) });
  }
  const nowSeconds = Math.floor(Date.now() / 1_000);
  const times = { iat: nowSeconds, nbf: nowSeconds, exp: nowSeconds + 600 };
  const wrongAudience = await issuer.sign({ iss: issuer.url, aud: 'other', sub: 'x', ...times });

  const guarded = app.routeList.filter(({ config }) => {
    const rule = config?.access as AccessRule;
    return rule !== 'public' && rule.role !== 'gateway';
  });
  t.ok(guarded.length >= 40);
  let refused = 0;
  for (const route of guarded) {
    // Ids of things that do not exist: the reply shows whether access was granted.
    const url = route.url.replaceAll(/:(\w+)Id/g, (_, name: string) => newId(name === 'organization' ? 'org' : 'key'));
    for (const method of [route.method].flat().filter((method) => method !== 'HEAD')) {
      const call = async (token: string) => {
        const headers = { authorization: `Bearer ${token}` };
        const response = await app.inject({ method: method as 'GET', url, headers });
        const isJson = /^application\/(problem\+)?json/.test(String(response.headers['content-type']));
        return { status: response.statusCode, code: isJson ? response.json().code : undefined };
      };
      t.match(await call(wrongAudience), { status: 401, code: 'unauthorized' }, `${method} ${route.url}`);
      for (const { scope, token, person } of pairs) {
        const [expected, found] = [await call(token.token), await call(person.token)];
        t.same(found, expected, `${method} ${route.url} with ${scope}`);
        if (found.status === 403) refused += 1;
      }
    }
  }
  t.ok(refused > 40, `${refused} were rejected`);
});

t.test("a token expires by the database's clock", async (t) => {
  const issuer = await startIssuer(t);
  const { as, organizationId, later } = await startService(t, {
    oidc: oidcOf(issuer, { claim: 'organization', ids: undefined }),
  });
  issuer.people.set('ada', { organization: organizationId, roles: ['latchkey-read'] });
  const person = as((await issuer.tokensOf('ada')).accessToken);
  t.equal((await person.get('/v1/keys')).status, 200);
  later(9 * 60_000);
  t.equal((await person.get('/v1/keys')).status, 200);
  later(2 * 60_000);
  t.match(await person.get('/v1/keys'), { status: 401, body: { code: 'token_expired' } });
});
