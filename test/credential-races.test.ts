import type { Test } from 'tap';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

async function listen({ app }: TestService): Promise<string> {
  return app.listen({ host: '127.0.0.1', port: 0 });
}

/** Two replicas on real sockets. The second receives changes late. */
async function twoReplicas(t: Test) {
  const a = await startService(t);
  const b = await startService(t, { urls: a.urls, keyring: a.keyring });
  return { a, b, urlA: await listen(a), urlB: await listen(b) };
}

async function call(url: string, method: string, path: string, token: string, body?: unknown, headers: Json = {}) {
  const response = await fetch(`${url}${path}`, {
    method,
    headers: {
      authorization: `Bearer ${token}`,
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: response.status, body: (await response.json()) as Json };
}

const newAdmin = async ({ admin }: TestService, number: number): Promise<Json> => {
  const input = {
    role: 'admin',
    scopes: ['read', 'write', 'reveal'],
    name: `Admin ${number}`,
    email: `a${number}@example.com`,
  };
  return (await admin.post('/v1/access-tokens', input)).body;
};

t.test("after a token's deletion on one replica, the other begins no change by that token", async (t) => {
  const { a, urlA, urlB } = await twoReplicas(t);
  const deletedAfter: number[] = [];
  for (let round = 0; round < 25; round++) {
    const token = await newAdmin(a, round);
    let isDeleted = false;
    let lateChanges = 0;
    let sent = 0;
    const workers = Array.from({ length: 4 }, async () => {
      for (;;) {
        const isLate = isDeleted;
        const path = sent % 3 === 2 ? '/v1/partners' : '/v1/keys';
        const input =
          path === '/v1/keys' ? {} : { email: `p${round}-${Math.random()}@p.example`, permissions: ['read'] };
        const { status } = await call(urlB, 'POST', path, token.token, input);
        if (status === 401) return;
        sent += 1;
        // A row has two places, so requests are refused or done. Both begin a transaction.
        if (isLate) lateChanges += 1;
      }
    });
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 30));
    t.equal((await call(urlA, 'DELETE', `/v1/access-tokens/${token.id}`, a.admin.token)).status, 200);
    isDeleted = true;
    await Promise.all(workers);
    deletedAfter.push(lateChanges);
    const { body } = await a.admin.get('/v1/history?limit=200');
    const deletion = body.data.findIndex(
      ({ action, details }: Json) => action === 'access_token.deleted' && details.accessTokenId === token.id,
    );
    const later = body.data.slice(0, deletion).filter(({ actor }: Json) => actor.id === token.id);
    t.same(later, [], 'no event of the token follows its deletion');
  }
  t.same(
    deletedAfter,
    deletedAfter.map(() => 0),
  );
});

t.test('a token is checked again inside the transaction, so a stale cache entry changes nothing', async (t) => {
  const service = await startService(t);
  const { admin, as, urls, operator, verification } = service;
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  // The replica receives no changes, but its feed still counts as connected for a moment.
  await dbQuery(urls.superuser, 'alter table access_tokens disable trigger access_tokens_notify');
  const { body: key } = await admin.post('/v1/keys', {});
  const changes: Array<[string, string, string]> = [
    ['deleted', 'deleted_at = now()', 'unauthorized'],
    ['expired', "expires_at = now() - interval '1 second'", 'token_expired'],
    ['of another role', "role = 'verifier'", 'unauthorized'],
    ['of another organization', `organization_id = '${other.id}'`, 'unauthorized'],
    ['without a row', "id = 'token_00000000000000000000000000'", 'unauthorized'],
  ];
  for (const [number, [what, change, code]] of changes.entries()) {
    const { token, id } = await newAdmin(service, number);
    const once = { 'idempotency-key': `once ${number}` };
    t.equal((await as(token).get('/v1/keys')).status, 200);
    const email = `p${number}@p.example`;
    const input = { email, permissions: ['read'] };
    t.equal((await as(token).post('/v1/partners', input, once)).status, 201);
    await dbQuery(urls.superuser, `update access_tokens set ${change} where id = $1`, [id]);
    t.equal((await as(token).get('/v1/keys')).status, 200, 'the cache is stale');
    for (const [path, body, headers] of [
      ['/v1/keys', {}, {}],
      [`/v1/keys/${key.id}/reveal`, {}, {}],
      [`/v1/keys/${key.id}/suspend`, {}, {}],
      ['/v1/partners', input, once],
    ] as const) {
      t.match(await as(token).post(path, body, headers), { status: 401, body: { code } }, `${what}: ${path}`);
    }
    const { body } = await admin.get(`/v1/history?actorId=${id}`);
    t.equal(body.data.length, 2, 'only the earlier partner and its key');
  }
  t.equal(verification.feed.isLive(), true);
});

t.test('tokens that delete each other or themselves get a reply without a deadlock', async (t) => {
  const { a, urlA, urlB } = await twoReplicas(t);
  for (let round = 0; round < 5; round++) {
    const [one, two] = [await newAdmin(a, 2 * round), await newAdmin(a, 2 * round + 1)];
    const remove = (url: string, by: Json, what: Json) => call(url, 'DELETE', `/v1/access-tokens/${what.id}`, by.token);
    const replies = await Promise.all([remove(urlA, one, two), remove(urlB, two, one), remove(urlB, one, one)]);
    t.ok(
      replies.every(({ status }) => [200, 401, 409].includes(status)),
      JSON.stringify(replies),
    );
    t.ok(replies.some(({ status }) => status === 200));
  }
});
