import * as six from 'openid-client';
import { Issuer } from 'openid-client-5';
import type { Test } from 'tap';
import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

async function startWithKey(t: Test) {
  const service = await startService(t);
  const url = await service.app.listen({ port: 0, host: '127.0.0.1' });
  const { body: key } = await service.admin.post('/v1/keys', {});
  const { body: deleted } = await service.admin.post('/v1/keys', {});
  await service.admin.delete(`/v1/keys/${deleted.id}`);
  return {
    secret: service.verifier.token,
    key,
    deleted,
    server: { issuer: url, introspection_endpoint: `${url}/v1/introspect` },
  };
}

t.test('openid-client 6 can introspect keys', async (t) => {
  const { server, secret, key, deleted } = await startWithKey(t);
  for (const authentication of [six.ClientSecretBasic(secret), six.ClientSecretPost(secret)]) {
    const configuration = new six.Configuration(server, 'https://rs.example/a b', undefined, authentication);
    six.allowInsecureRequests(configuration);
    const hint = { token_type_hint: 'access_token', resource: 'https://api.example' };
    t.match(await six.tokenIntrospection(configuration, key.key, hint), { active: true, sub: key.id });
    t.same(await six.tokenIntrospection(configuration, deleted.key), { active: false });
  }
});

t.test('openid-client 5 can introspect keys', async (t) => {
  const { server, secret, key, deleted } = await startWithKey(t);
  const { Client } = new Issuer(server);
  for (const method of ['client_secret_basic', 'client_secret_post'] as const) {
    const client = new Client({
      client_id: 'https://rs.example/a b',
      client_secret: secret,
      introspection_endpoint_auth_method: method,
    });
    t.match(await client.introspect(key.key, 'access_token'), { active: true, sub: key.id }, method);
    t.same(await client.introspect(deleted.key), { active: false }, method);
  }
});
