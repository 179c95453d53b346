import fc from 'fast-check';
import { createMemoryLimits, type UseBuckets } from '../src/verification/limits.ts';
import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

// Limits for the use of keys. limits.test.ts tests the limits of Latchkey's own endpoints.

const bucket = (id: string, requests: number, windowSeconds = 60) => ({ id, requests, windowSeconds });

t.test('a bucket allows exactly its limit until the window ends', async (t) => {
  let now = 0;
  const limits = createMemoryLimits(() => now);
  const use = async (cost = 1) => limits.count([bucket('a', 3)], cost);
  for (const remaining of [2, 1, 0]) {
    t.match(await use(), {
      isExceeded: false,
      limit: 3,
      remaining,
      windowSeconds: 60,
      resetSeconds: 60,
      policy: 'owner',
    });
  }
  now = 59_001;
  t.match(await use(), { isExceeded: true, remaining: 0, resetSeconds: 1 });
  now = 60_000;
  t.match(
    await use(),
    { isExceeded: false, remaining: 2, resetSeconds: 60 },
    'the next window begins with its first use',
  );
});

t.test('a cost is counted completely or not at all, and cost 0 uses nothing', async (t) => {
  let now = 0;
  const limits = createMemoryLimits(() => now);
  const use = async (cost: number) => limits.count([bucket('a', 10)], cost);
  t.match(await use(0), { isExceeded: false, remaining: 10 });
  t.match(await use(8), { isExceeded: false, remaining: 2 });
  t.match(await use(3), { isExceeded: true, remaining: 2 }, 'a rejected cost is not counted');
  t.match(await use(2), { isExceeded: false, remaining: 0 });
  t.match(await use(0), { isExceeded: false, remaining: 0 }, 'cost 0 is never rejected');
  const unused = createMemoryLimits(() => now);
  unused.count([bucket('a', 10)], 0);
  now = 59_000;
  t.match(unused.count([bucket('a', 10)], 1), { resetSeconds: 60 }, 'cost 0 begins no window');
});

t.test('a use that one bucket rejects does not count in the other', async (t) => {
  const limits = createMemoryLimits(() => 0);
  const owner = bucket('owner', 5);
  const narrow: UseBuckets = [owner, bucket('narrow', 2)];
  const wide: UseBuckets = [owner, bucket('wide', 100)];
  t.match(await limits.count(narrow, 1), { isExceeded: false, policy: 'key', limit: 2, remaining: 1 });
  t.match(await limits.count(narrow, 1), { isExceeded: false, policy: 'key', remaining: 0 });
  for (let round = 0; round < 10; round++) {
    t.match(await limits.count(narrow, 1), { isExceeded: true, policy: 'key', limit: 2 });
  }
  for (const remaining of [2, 1, 0]) {
    t.match(await limits.count(wide, 1), { isExceeded: false, policy: 'owner', limit: 5, remaining });
  }
  t.match(await limits.count(wide, 1), { isExceeded: true, policy: 'owner' });
  t.match(await limits.count([bucket('other', 1), bucket('wide', 100)], 0), { remaining: 1, policy: 'owner' });
});

t.test('a changed limit acts at once, and another window length is another bucket', async (t) => {
  const limits = createMemoryLimits(() => 0);
  const use = async (requests: number, windowSeconds = 60) => limits.count([bucket('a', requests, windowSeconds)], 1);
  for (let round = 0; round < 5; round++) t.equal((await use(10)).isExceeded, false);
  t.match(await use(3), { isExceeded: true, limit: 3, remaining: 0 });
  t.match(await use(6), { isExceeded: false, remaining: 0 });
  t.match(await use(6), { isExceeded: true });
  t.match(await use(6, 30), { isExceeded: false, remaining: 5, resetSeconds: 30 });
});

t.test('for any sequence of uses a bucket allows what fits into its window, and no more', async (t) => {
  const windowMs = 5_000;
  const limitOf = (id: string) => (id.startsWith('owner') ? 12 : 5);
  const uses = fc.array(
    fc.record({ owner: fc.nat(2), key: fc.nat(3), cost: fc.integer({ min: 0, max: 6 }), afterMs: fc.nat(4_000) }),
    { maxLength: 200 },
  );
  const agreesWithModel = fc.asyncProperty(uses, async (sequence) => {
    let now = 0;
    const limits = createMemoryLimits(() => now);
    // The model keeps every counted use, and sums those in the window that began with the first one.
    const counts = new Map<string, Array<{ atMs: number; counted: number }>>();
    const usedBy = (id: string) => {
      let window = { atMs: Number.NEGATIVE_INFINITY, used: 0 };
      for (const { atMs, counted } of counts.get(id) ?? []) {
        if (atMs >= window.atMs + windowMs) window = { atMs, used: 0 };
        window.used += counted;
      }
      return now < window.atMs + windowMs ? window.used : 0;
    };
    for (const { owner, key, cost, afterMs } of sequence) {
      now += afterMs;
      const ids = [`owner${owner}`, `key${key}`] as const;
      const { isExceeded } = await limits.count([bucket(ids[0], 12, 5), bucket(ids[1], 5, 5)], cost);
      const fits = ids.every((id) => usedBy(id) + cost <= limitOf(id));
      if (isExceeded === (fits || cost === 0)) return false;
      for (const id of ids) {
        const counted = isExceeded ? 0 : cost;
        if (counted > 0) counts.set(id, [...(counts.get(id) ?? []), { atMs: now, counted }]);
      }
      if (ids.some((id) => usedBy(id) > limitOf(id))) return false;
    }
    return true;
  });
  await t.resolves(fc.assert(agreesWithModel, { numRuns: 200 }));
});

t.test('all keys of an owner share its limit, and a key may have a lower one', async (t) => {
  const { admin, verifier, verification, as } = await startService(t);
  const verify = async (key: string, more = {}) =>
    (await verifier.post('/v1/verify', { key, permission: 'read', ...more })).body;
  const { body: partner } = await admin.post('/v1/partners', {
    email: 'p@p.example',
    permissions: ['read'],
    rateLimit: { requests: 6, windowSeconds: 60 },
  });
  const [first] = partner.keys;
  const { body: second } = await admin.post('/v1/keys', {
    partnerId: partner.id,
    rateLimit: { requests: 2, windowSeconds: 60 },
  });
  t.match(await verify(first.key), { code: 'valid', rateLimit: { limit: 6, remaining: 5, resetSeconds: 60 } });
  t.match(await verify(second.key), { code: 'valid', rateLimit: { limit: 2, remaining: 1 } });
  t.match(await verify(second.key), { code: 'valid', rateLimit: { limit: 2, remaining: 0 } });
  t.match(await verify(second.key), { valid: false, code: 'rate_limited', rateLimit: { limit: 2, remaining: 0 } });
  t.match(await verify(first.key, { cost: 0 }), { code: 'valid', rateLimit: { limit: 6, remaining: 3 } });
  t.match(await verify(first.key, { cost: 3 }), { code: 'valid', rateLimit: { remaining: 0 } });
  t.match(await verify(first.key), { code: 'rate_limited' });
  t.match(await verify(first.key, { permission: 'write' }), { code: 'insufficient_permission', rateLimit: null });

  const { body: ownKey } = await admin.post('/v1/keys', {});
  t.match(await verify(ownKey.key), { code: 'valid', rateLimit: { limit: 1000, remaining: 999 } }, 'another owner');
  await admin.patch(`/v1/partners/${partner.id}`, { rateLimit: { requests: 8, windowSeconds: 60 } });
  t.match(
    await verify(first.key),
    { code: 'valid', rateLimit: { limit: 8, remaining: 1 } },
    'the changed limit acts at once',
  );
  await admin.patch(`/v1/partners/${partner.id}`, { rateLimit: null });
  t.match(await verify(first.key), { code: 'valid', rateLimit: { limit: 1000 } });

  await t.test('GET /v1/self counts as a use, with its own limit for each key', async (t) => {
    await admin.put('/v1/rate-limit', { requests: 3, windowSeconds: 60 });
    const self = () => as(ownKey.key).get('/v1/self');
    const [one, two, three, four] = [await self(), await self(), await self(), await self()];
    t.same(
      [one, two, three, four].map(({ status }) => status),
      [200, 200, 200, 429],
    );
    t.match(one.headers, { 'ratelimit-policy': '"self";q=3;w=60', ratelimit: /^"self";r=2;t=\d+$/ });
    t.same(one.body.rateLimit, { requests: 3, windowSeconds: 60 });
    t.match(four.headers['retry-after'], /^\d+$/);
    t.match(await verify(ownKey.key), { code: 'valid' }, 'other uses are counted separately');
    await verification.usage.flush();
    const { body: usage } = await admin.get(`/v1/keys/${ownKey.id}/usage`);
    t.match(usage.total, { allowed: 5, rateLimited: 1 }, 'two verifications and four self requests');
  });
});

t.test("GET /v1/self with a stolen key uses up neither the partner's limit nor that of another key", async (t) => {
  const { admin, verifier, as } = await startService(t);
  const rateLimit = { requests: 4, windowSeconds: 60 };
  const { body: partner } = await admin.post('/v1/partners', {
    email: 'p@p.example',
    permissions: ['read', 'write'],
    rateLimit,
  });
  const [stolen, other] = partner.keys;
  await admin.patch(`/v1/keys/${stolen.id}`, {
    allowedIps: ['192.0.2.1'],
    rateLimit: { requests: 50, windowSeconds: 60 },
  });
  const statuses = new Set<number>();
  for (let round = 0; round < 99; round++) statuses.add((await as(stolen.key).get('/v1/self')).status);
  t.same([...statuses], [200, 429]);
  t.equal((await as(other.key).get('/v1/self')).status, 200, 'the limit of another key is not affected');
  for (const [{ key, permission }, ip] of [
    [stolen, '192.0.2.1'],
    [other, undefined],
  ] as const) {
    t.match((await verifier.post('/v1/verify', { key, permission, ip })).body, { code: 'valid' });
  }
});
