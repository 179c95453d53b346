import { Redis } from 'ioredis';
import type { Test } from 'tap';
import { createSharedLimits, type SharedLimits } from '../src/verification/shared-limits.ts';
import { startService } from './support/app.ts';
import { freePort } from './support/ports.ts';
import { eventually } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { proxyTo } from './support/proxy.ts';
import { startRedis } from './support/redis.ts';
import { t } from './support/tap.ts';

const skip = unlessInstalled('redis-server');

async function startReplicas(t: Test, count: number, overrides: Parameters<typeof startService>[1] = {}) {
  const redis = await startRedis(t);
  const first = await startService(t, { ...overrides, state: { redisUrl: redis.url } });
  const { urls, keyring } = first;
  const others = await Promise.all(
    Array.from({ length: count - 1 }, () =>
      startService(t, { ...overrides, urls, keyring, state: { redisUrl: redis.url } }),
    ),
  );
  const replicas = [first, ...others];
  const modeOf = (replica: typeof first) => (replica.verification.limits as SharedLimits).mode;
  await eventually(async () => replicas.every((replica) => modeOf(replica) === 'shared'));
  const input = { role: 'verifier', scopes: ['read'], name: 'For all' };
  const { body: token } = await first.operator.post('/v1/access-tokens', input);
  const verify = async (replica: typeof first, key: string, more = {}) =>
    (await replica.as(token.token).post('/v1/verify', { key, permission: 'read', ...more })).body;
  return { redis, first, replicas, modeOf, verify };
}

t.test('three replicas with Redis share one limit', { skip }, async (t) => {
  const { first, replicas, verify } = await startReplicas(t, 3);
  const requests = 200;
  await first.admin.put('/v1/rate-limit', { requests, windowSeconds: 60 });
  const { body: key } = await first.admin.post('/v1/keys', {});
  const codes = await Promise.all(
    Array.from({ length: requests * 2 }, async (_, index) => {
      const replica = replicas[index % replicas.length] ?? first;
      return (await verify(replica, key.key)).code as string;
    }),
  );
  const admitted = codes.filter((code) => code === 'valid').length;
  t.ok(admitted >= requests * 0.95 && admitted <= requests * 1.1, `${admitted} of ${requests}`);
  t.equal(admitted + codes.filter((code) => code === 'rate_limited').length, codes.length);
});

t.test('limits in Redis follow the same rules as in memory', { skip }, async (t) => {
  const { first, replicas, verify } = await startReplicas(t, 2);
  const [a, b] = replicas as [typeof first, typeof first];
  const { body: partner } = await first.admin.post('/v1/partners', {
    email: 'p@p.example',
    permissions: ['read'],
    rateLimit: { requests: 6, windowSeconds: 60 },
  });
  const [wide] = partner.keys;
  const rateLimit = { requests: 2, windowSeconds: 60 };
  const { body: narrow } = await first.admin.post('/v1/keys', { partnerId: partner.id, rateLimit });
  t.match(await verify(a, narrow.key), { code: 'valid', rateLimit: { limit: 2, remaining: 1, resetSeconds: 60 } });
  t.match(await verify(b, narrow.key), { code: 'valid', rateLimit: { limit: 2, remaining: 0 } });
  for (const replica of [a, b, a, b]) {
    t.match(await verify(replica, narrow.key), { code: 'rate_limited', rateLimit: { limit: 2, remaining: 0 } });
  }
  t.match(await verify(b, wide.key, { cost: 0 }), { code: 'valid', rateLimit: { limit: 6, remaining: 4 } });
  t.match(await verify(a, wide.key, { cost: 5 }), { code: 'rate_limited', rateLimit: { remaining: 4 } });
  t.match(await verify(a, wide.key, { cost: 4 }), { code: 'valid', rateLimit: { remaining: 0 } });
  await first.admin.patch(`/v1/partners/${partner.id}`, { rateLimit: { requests: 7, windowSeconds: 60 } });
  t.match(await verify(a, wide.key), { code: 'valid', rateLimit: { limit: 7, remaining: 0 } });
  await first.admin.patch(`/v1/partners/${partner.id}`, { rateLimit: { requests: 2, windowSeconds: 1 } });
  t.match(await verify(a, wide.key), { code: 'valid', rateLimit: { limit: 2, remaining: 1, resetSeconds: 1 } });
  t.match(await verify(a, wide.key), { code: 'valid' });
  t.match(await verify(a, wide.key), { code: 'rate_limited' });
  await eventually(async () => (await verify(a, wide.key)).code === 'valid', 5_000);
});

for (const [how, break_] of [
  ['killed', 'SIGKILL'],
  ['stopped, so that it is silent', 'SIGSTOP'],
] as const) {
  t.test(`if Redis ${how}, replicas count in memory and log it, and share again afterwards`, { skip }, async (t) => {
    const { redis, first, replicas, modeOf, verify } = await startReplicas(t, 2);
    await first.admin.put('/v1/rate-limit', { requests: 50, windowSeconds: 60 });
    const { body: key } = await first.admin.post('/v1/keys', {});
    for (const replica of replicas) t.equal((await verify(replica, key.key)).code, 'valid');
    redis.process.child.kill(break_);
    const during = await Promise.all(
      replicas.flatMap((replica) => Array.from({ length: 20 }, async () => (await verify(replica, key.key)).code)),
    );
    t.ok(during.every((code) => code === 'valid'));
    await eventually(async () => replicas.every((replica) => modeOf(replica) === 'memory'));
    for (const replica of replicas) {
      t.match(replica.logLines.join(''), 'Each replica counts rate limits in its own memory');
      const startedAtMs = performance.now();
      t.equal((await verify(replica, key.key)).rateLimit.limit, 50);
      for (let round = 0; round < 100; round++) await verify(replica, key.key);
      t.ok(performance.now() - startedAtMs < 5_000, 'it does not wait for Redis at each use');
      t.equal((await verify(replica, key.key)).code, 'rate_limited', 'each replica has its own limit');
    }
    if (break_ === 'SIGSTOP') redis.process.child.kill('SIGCONT');
    else await startRedis(t, Number(new URL(redis.url).port));
    await eventually(async () => replicas.every((replica) => modeOf(replica) === 'shared'));
    const { body: other } = await first.admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
    await verify(replicas[0] ?? first, other.keys[0].key);
    t.match(await verify(replicas[1] ?? first, other.keys[0].key), { rateLimit: { remaining: 48 } });
  });
}

t.test('without Redis from the start, limits are counted in memory', async (t) => {
  const lines: string[] = [];
  const note = (...parts: unknown[]) => void lines.push(JSON.stringify(parts));
  const limits = createSharedLimits({ url: 'redis://127.0.0.1:1', logger: { warn: note, info: note } });
  t.teardown(() => limits.close());
  t.match(await limits.count([{ id: 'a', requests: 1, windowSeconds: 60 }], 1), { isExceeded: false });
  t.match(await limits.count([{ id: 'a', requests: 1, windowSeconds: 60 }], 1), { isExceeded: true });
  t.equal(limits.mode, 'memory');
  await eventually(async () => lines.join('').includes('Redis does not answer'));
});

t.test('an outage of Redis does not grant the whole limit again', { skip }, async (t) => {
  const { redis, first, replicas, verify } = await startReplicas(t, 1);
  const [only] = replicas as [typeof first];
  await first.admin.put('/v1/rate-limit', { requests: 20, windowSeconds: 60 });
  const { body: key } = await first.admin.post('/v1/keys', {});
  for (let round = 0; round < 18; round++) await verify(only, key.key);
  redis.process.child.kill('SIGKILL');
  const codes: string[] = [];
  for (let round = 0; round < 6; round++) codes.push((await verify(only, key.key)).code);
  t.equal(codes.filter((code) => code === 'valid').length, 2, 'memory continues from the last counts of Redis');
});

for (const count of [1, 2]) {
  const guarantee = 'at most one limit plus the uses during the outage';
  t.test(`with ${count} replicas and a restarting Redis: ${guarantee}`, { skip }, async (t) => {
    const { redis, first, replicas, modeOf, verify } = await startReplicas(t, count);
    const requests = 60;
    await first.admin.put('/v1/rate-limit', { requests, windowSeconds: 3_600 });
    const { body: key } = await first.admin.post('/v1/keys', {});
    const use = async (times: number) => {
      let valid = 0;
      for (const replica of replicas) {
        for (let round = 0; round < times; round++) if ((await verify(replica, key.key)).code === 'valid') valid += 1;
      }
      return valid;
    };
    let running = redis.process;
    let allowed = await use(4);
    let whileGone = 0;
    for (let outage = 0; outage < 3; outage++) {
      running.child.kill('SIGKILL');
      await eventually(async () => replicas.every((replica) => modeOf(replica) === 'memory'));
      whileGone += await use(3);
      // The restarted Redis has kept nothing.
      running = (await startRedis(t, Number(new URL(redis.url).port))).process;
      await eventually(async () => replicas.every((replica) => modeOf(replica) === 'shared'));
      allowed += await use(2);
    }
    allowed += await use(requests);
    if (count === 1) t.equal(allowed + whileGone, requests);
    t.ok(allowed + whileGone >= requests && allowed <= requests, `${allowed} allowed, ${whileGone} during the outage`);
  });
}

t.test('a silent Redis that kept its counts gets the missed uses once', { skip }, async (t) => {
  const { redis, first, replicas, modeOf, verify } = await startReplicas(t, 1);
  const [only] = replicas as [typeof first];
  const { body: key } = await first.admin.post('/v1/keys', { rateLimit: { requests: 50, windowSeconds: 3_600 } });
  for (let round = 0; round < 10; round++) await verify(only, key.key);
  redis.process.child.kill('SIGSTOP');
  await eventually(async () => {
    await verify(only, key.key, { cost: 0 });
    return modeOf(only) === 'memory';
  });
  for (let round = 0; round < 5; round++) await verify(only, key.key);
  redis.process.child.kill('SIGCONT');
  await eventually(async () => modeOf(only) === 'shared');
  const answers = await Promise.all(Array.from({ length: 8 }, () => verify(only, key.key)));
  t.equal(Math.min(...answers.map(({ rateLimit }) => rateLimit.remaining)), 27);
});

t.test('a connection to Redis that is silent for good is replaced', { skip }, async (t) => {
  const redis = await startRedis(t);
  const proxy = await proxyTo(t, redis.url);
  const lines: string[] = [];
  const note = (...parts: unknown[]) => void lines.push(JSON.stringify(parts));
  const limits = createSharedLimits({ url: proxy.url, logger: { warn: note, info: note } });
  t.teardown(() => limits.close());
  await limits.decided;
  t.equal(limits.mode, 'shared');
  // As if the machine of the primary were lost, and its name led to another one.
  proxy.swallowOpen();
  t.match(await limits.count([{ id: 'a', requests: 2, windowSeconds: 60 }], 1), { isExceeded: false });
  t.equal(limits.mode, 'memory');
  await eventually(async () => limits.mode === 'shared');
  t.match(await limits.count([{ id: 'a', requests: 2, windowSeconds: 60 }], 1), { isExceeded: false });
  t.match(await limits.count([{ id: 'a', requests: 2, windowSeconds: 60 }], 1), { isExceeded: true });
});

t.test('a Redis that accepts no writes is not used, and the log reports it once', { skip }, async (t) => {
  const { redis, first, modeOf, verify } = await startReplicas(t, 1);
  const { body: key } = await first.admin.post('/v1/keys', {});
  const port = await freePort();
  const client = new Redis(redis.url);
  t.teardown(() => client.disconnect());
  await client.replicaof('127.0.0.1', port);
  await eventually(async () => {
    t.equal((await verify(first, key.key)).code, 'valid');
    return modeOf(first) === 'memory';
  });
  const before = first.logLines.length;
  for (const deadline = Date.now() + 1_500; Date.now() < deadline; ) await verify(first, key.key);
  const logged = first.logLines.slice(before).filter((line) => /Redis/.test(line));
  t.ok(logged.length <= 1, logged.join(''));
  await client.replicaof('NO', 'ONE');
  await eventually(async () => modeOf(first) === 'shared');
});

t.test('the count of a rotated key continues in Redis', { skip }, async (t) => {
  const { first, replicas, verify } = await startReplicas(t, 2);
  const { body: old } = await first.admin.post('/v1/keys', { rateLimit: { requests: 10, windowSeconds: 3_600 } });
  const [a, b] = replicas as [typeof first, typeof first];
  await verify(a, old.key, { cost: 7 });
  const { body: next } = await first.admin.post(`/v1/keys/${old.id}/rotate`, {});
  t.match(await verify(b, next.key), { code: 'valid', rateLimit: { policy: 'key', remaining: 2 } });
  t.match(await verify(a, old.key, { cost: 3 }), { code: 'rate_limited', rateLimit: { policy: 'key', remaining: 2 } });
});

t.test('a corrupted bucket starts again', { skip }, async (t) => {
  const { redis, first, replicas, verify } = await startReplicas(t, 1);
  const [only] = replicas as [typeof first];
  await first.admin.put('/v1/rate-limit', { requests: 2, windowSeconds: 60 });
  const { body: key } = await first.admin.post('/v1/keys', {});
  for (let round = 0; round < 3; round++) await verify(only, key.key);
  t.equal((await verify(only, key.key)).code, 'rate_limited');
  const client = new Redis(redis.url);
  t.teardown(() => client.disconnect());
  const [bucket = ''] = await client.keys('latchkey:limit:{org_*');
  await client.persist(bucket);
  t.equal((await verify(only, key.key)).code, 'valid', 'otherwise the window would never end');
  await client.set(bucket, 'rubbish', 'PX', 60_000);
  t.equal((await verify(only, key.key)).code, 'valid');
  t.ok((await client.pttl(bucket)) > 0);
});
