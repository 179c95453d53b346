import { LocalLimit } from '../clients/node/src/known-keys.ts';
import { startClient, startListening } from './support/hook.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

t.test('one backend allows exactly the limit, at any rate of calls', async (t) => {
  const { url, admin, verifier, verification } = await startListening(t);
  await admin.put('/v1/rate-limit', { requests: 1_000_000, windowSeconds: 3_600 });
  const client = await startClient(t, { url, token: verifier.token });
  for (const [atOnce, cost] of [
    [1, 1],
    [7, 3],
    [200, 1],
  ] as const) {
    const { body: key } = await admin.post('/v1/keys', { rateLimit: { requests: 500, windowSeconds: 3_600 } });
    let allowed = 0;
    for (let round = 0; round * atOnce * cost < 700; round++) {
      const verdicts = await Promise.all(
        Array.from({ length: atOnce }, () => client.verify({ key: key.key, permission: 'read', cost })),
      );
      allowed += verdicts.filter(({ valid }) => valid).length;
    }
    t.equal(allowed, Math.floor(500 / cost), `${atOnce} at once, ${cost} each`);
    await verification.usage.flush();
    await eventually(async () => {
      await verification.usage.flush();
      const { body } = await admin.get(`/v1/keys/${key.id}/usage`);
      return body.total.allowed === allowed;
    });
    await admin.delete(`/v1/keys/${key.id}`);
  }
});

t.test("the owner's limit holds as well as the key's own limit", async (t) => {
  const { url, admin, verifier } = await startListening(t);
  const client = await startClient(t, { url, token: verifier.token });
  await admin.put('/v1/rate-limit', { requests: 160, windowSeconds: 3_600 });
  const { body: key } = await admin.post('/v1/keys', {});
  let allowed = 0;
  for (let call = 0; call < 250; call++) {
    if ((await client.verify({ key: key.key, permission: 'read' })).valid) allowed += 1;
  }
  t.equal(allowed, 160);
});

t.test('a rotated key continues the count of its predecessor', async (t) => {
  const { url, admin, verifier } = await startListening(t);
  const client = await startClient(t, { url, token: verifier.token });
  const { body: old } = await admin.post('/v1/keys', { rateLimit: { requests: 200, windowSeconds: 3_600 } });
  const use = async (key: string, times: number) => {
    let allowed = 0;
    for (let call = 0; call < times; call++) {
      if ((await client.verify({ key, permission: 'read' })).valid) allowed += 1;
    }
    return allowed;
  };
  t.equal(await use(old.key, 120), 120);
  const { body: next } = await admin.post(`/v1/keys/${old.id}/rotate`, {});
  t.equal(await use(next.key, 120), 80);
});

t.test('each of several backends exceeds the limit by at most a sixteenth, and soon rejects', async (t) => {
  const { url, admin, verifier } = await startListening(t);
  await admin.put('/v1/rate-limit', { requests: 1_000_000, windowSeconds: 3_600 });
  const options = { url, token: verifier.token };
  const clients = await Promise.all([1, 2, 3, 4].map(() => startClient(t, options)));
  const limit = 800;
  const { body: key } = await admin.post('/v1/keys', { rateLimit: { requests: limit, windowSeconds: 3_600 } });
  let allowed = 0;
  for (let round = 0; round < 2 * limit; round += clients.length) {
    const verdicts = await Promise.all(clients.map((client) => client.verify({ key: key.key, permission: 'read' })));
    allowed += verdicts.filter(({ valid }) => valid).length;
  }
  t.ok(allowed >= limit, `${allowed} of ${limit}`);
  t.ok(allowed <= limit + (limit / 16) * clients.length, `${allowed} of ${limit}`);
  await eventually(async () => {
    const verdicts = await Promise.all(clients.map((client) => client.verify({ key: key.key, permission: 'read' })));
    return verdicts.every(({ code }) => code === 'rate_limited');
  });
});

t.test('a new window allows uses again, and a raised limit acts at once', async (t) => {
  const { url, admin, verifier } = await startListening(t);
  const client = await startClient(t, { url, token: verifier.token });
  const { body: key } = await admin.post('/v1/keys', { rateLimit: { requests: 3, windowSeconds: 2 } });
  const verify = () => client.verify({ key: key.key, permission: 'read' });
  const codes = [];
  for (let call = 0; call < 4; call++) codes.push((await verify()).code);
  t.same(codes, ['valid', 'valid', 'valid', 'rate_limited']);
  t.equal((await client.verify({ key: key.key, permission: 'read', cost: 0 })).code, 'valid', 'cost 0 uses nothing');
  const startedAtMs = performance.now();
  await eventually(async () => (await verify()).valid);
  t.ok(performance.now() - startedAtMs < 3_500);
  for (let call = 0; call < 3; call++) await verify();
  t.equal((await verify()).code, 'rate_limited');
  await admin.patch(`/v1/keys/${key.id}`, { rateLimit: { requests: 100, windowSeconds: 60 } });
  await eventually(async () => (await verify()).valid, 1_000);
});

t.test('while Latchkey is unavailable, each window allows the limit and no more', async (t) => {
  const { app, url, admin, verifier } = await startListening(t);
  const client = await startClient(t, { url, token: verifier.token });
  const limit = { requests: 5, windowSeconds: 1 };
  await admin.put('/v1/rate-limit', limit);
  const { body: key } = await admin.post('/v1/keys', {});
  const verify = async () => (await client.verify({ key: key.key, permission: 'read' })).code;
  t.equal(await verify(), 'valid');
  await app.close();
  await eventually(async () => !client.isLive());
  const windows = 4;
  let allowed = 0;
  const startedAtMs = performance.now();
  await eventually(async () => {
    if ((await verify()) === 'valid') allowed += 1;
    return performance.now() - startedAtMs > windows * 1_000;
  });
  // The first and the last window are only partly inside the measured time.
  t.ok(allowed <= limit.requests * (windows + 1), `${allowed} in ${windows} s`);
  t.ok(allowed >= limit.requests * (windows - 1), `${allowed} in ${windows} s`);
});

t.test('the remaining limit never exceeds what Latchkey replied, in whatever order replies arrive', async (t) => {
  const state = (remaining: number, resetSeconds = 60) => ({
    policy: 'key' as const,
    limit: 160,
    windowSeconds: 60,
    remaining,
    resetSeconds,
  });
  const limit = new LocalLimit();
  t.ok(limit.hasCredit(1_000, 0), 'an unknown limit allows the use; the other limit decides');
  limit.learn(state(160), 0);
  t.ok(limit.hasCredit(10, 1));
  t.notOk(limit.hasCredit(11, 1), 'a sixteenth');
  limit.pending = 4;
  t.notOk(limit.hasCredit(7, 1));
  limit.learn(state(100, 59), 900);
  limit.learn(state(120, 60), 950);
  t.match(limit.state('key', 950), { remaining: 96 });
  t.notOk(limit.hasCredit(1, 61_000), 'after the window Latchkey has to be called');
  t.ok(limit.hasRest(160, 61_000), 'if Latchkey cannot be called, a new window begins');
  limit.learn(state(30), 130_000);
  limit.assumeCounted(4);
  t.match(limit.state('key', 130_000), { remaining: 26, resetSeconds: 60 });
});
