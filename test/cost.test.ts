import { startService } from './support/app.ts';
import { startBackend, startClient, startListening } from './support/hook.ts';
import { t } from './support/tap.ts';

t.test('a cost above the limit is a 400 without Retry-After, whatever remains of the window', async (t) => {
  const { admin, verifier, verification } = await startService(t);
  await admin.put('/v1/rate-limit', { requests: 10, windowSeconds: 60 });
  const { body: wide } = await admin.post('/v1/keys', {});
  const { body: narrow } = await admin.post('/v1/keys', { rateLimit: { requests: 3, windowSeconds: 30 } });
  const verify = (key: string, cost: number) => verifier.post('/v1/verify', { key, permission: 'read', cost });
  for (const [key, cost, limit] of [
    [wide.key, 11, { policy: 'owner', limit: 10, windowSeconds: 60 }],
    [narrow.key, 4, { policy: 'key', limit: 3, windowSeconds: 30 }],
    [narrow.key, 11, { policy: 'key', limit: 3, windowSeconds: 30 }],
  ] as const) {
    const { status, headers, body } = await verify(key, cost);
    t.match({ status, body }, { status: 400, body: { code: 'cost_exceeds_limit', ...limit } });
    t.notOk('retry-after' in headers || 'resetSeconds' in body);
  }
  t.match(await verify(narrow.key, 3), { status: 200, body: { code: 'valid', rateLimit: { remaining: 0 } } });
  t.match(await verify(narrow.key, 1), { status: 200, body: { code: 'rate_limited' } });
  t.match(await verify(narrow.key, 4), { status: 400, body: { code: 'cost_exceeds_limit' } });
  t.match(await verify(wide.key, 7), { status: 200, body: { code: 'valid', rateLimit: { remaining: 0 } } });
  await verification.usage.flush();
  t.match((await admin.get(`/v1/keys/${wide.id}/usage`)).body.total, { allowed: 1, denied: 0, rateLimited: 0 });

  await t.test('a problem of the key takes precedence over the cost', async (t) => {
    await admin.delete(`/v1/keys/${wide.id}`);
    t.match(await verify(wide.key, 11), { status: 200, body: { code: 'deleted' } });
  });

  await t.test('in a batch only that entry fails; uses that were already allowed are counted', async (t) => {
    const entry = { key: narrow.key, permission: 'read' };
    const entries = [
      { ...entry, cost: 4 },
      { ...entry, cost: 0 },
      { ...entry, cost: 50, uses: 50 },
    ];
    const { status, body } = await verifier.post('/v1/verify/batch', { entries });
    t.equal(status, 200);
    t.match(body.data, [{ status: 400, code: 'cost_exceeds_limit' }, { code: 'valid' }, { code: 'valid' }]);
  });
});

t.test('the client throws CostExceedsLimit, and the hook replies 403 without Retry-After', async (t) => {
  const { url, app, admin, verifier } = await startListening(t);
  const options = { url, token: verifier.token };
  const { body: key } = await admin.post('/v1/keys', { rateLimit: { requests: 2, windowSeconds: 60 } });
  const client = await startClient(t, options);
  const verify = async (cost: number) => client.verify({ key: key.key, permission: 'read', cost });
  await t.rejects(verify(3), { name: 'CostExceedsLimit' });
  const both = await Promise.allSettled([verify(3), verify(1)]);
  t.match(
    both,
    [{ reason: { name: 'CostExceedsLimit' } }, { value: { code: 'valid' } }],
    'one does not fail the other',
  );
  await t.rejects(verify(3), { name: 'CostExceedsLimit' }, 'also when the key is known');
  const backend = await startBackend(t, { ...options, cost: () => 3 });
  const response = await fetch(`${backend.url}/hello`, { headers: { authorization: `Bearer ${key.key}` } });
  t.equal(response.status, 403);
  t.equal(response.headers.get('retry-after'), null);
  await app.close();
  await t.rejects(async () => verify(3), { name: 'CostExceedsLimit' }, 'also while Latchkey is unavailable');
});

t.test(
  'the reply names the exceeded limit: all keys of an owner share one, and a key may have a lower one',
  async (t) => {
    const { app, admin, verifier } = await startService(t);
    await admin.put('/v1/rate-limit', { requests: 4, windowSeconds: 60 });
    const { body: key } = await admin.post('/v1/keys', { rateLimit: { requests: 100, windowSeconds: 60 } });
    const verify = async () => (await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body;
    const refusalOf = async (presented: string): Promise<string> => {
      const headers = { 'x-api-key': presented, 'x-latchkey-token': verifier.token, 'x-forwarded-method': 'GET' };
      return (await app.inject({ url: '/v1/authorize', headers })).json().detail;
    };
    for (const remaining of [3, 2, 1, 0]) {
      t.match(await verify(), { code: 'valid', rateLimit: { policy: 'owner', limit: 4, remaining } });
    }
    t.match(await verify(), { code: 'rate_limited', rateLimit: { policy: 'owner', limit: 4 } });
    t.match(
      await refusalOf(key.key),
      /The limit that all keys of the key's owner share is 4 in 60 seconds\. A key's own limit cannot raise it/,
    );
    await admin.put('/v1/rate-limit', { requests: 1_000, windowSeconds: 60 });
    const { body: narrow } = await admin.post('/v1/keys', { rateLimit: { requests: 1, windowSeconds: 30 } });
    await verifier.post('/v1/verify', { key: narrow.key, permission: 'read' });
    t.match(
      await refusalOf(narrow.key),
      /The key's own limit, which applies in addition to its owner's, is 1 in 30 seconds/,
    );
  },
);
