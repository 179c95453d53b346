import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { clusterNodes } from '../src/lib/redis-url.ts';
import { createSharedLimits, type SharedLimits } from '../src/verification/shared-limits.ts';
import { startService } from './support/app.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { listenRaw } from './support/listeners.ts';
import { freePort } from './support/ports.ts';
import { eventually, runEntry } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { startRedis } from './support/redis.ts';
import { startRedisCluster } from './support/redis-cluster.ts';
import { t } from './support/tap.ts';

const skip = unlessInstalled('redis-server');

t.test('two replicas share limits in a Redis Cluster: both buckets of a use are in one slot', { skip }, async (t) => {
  const cluster = await startRedisCluster(t);
  const state = { redisUrl: cluster.url };
  const first = await startService(t, { state, keyring: keyringOf('new') });
  const second = await startService(t, { state, urls: first.urls, keyring: first.keyring });
  const replicas = [first, second];
  const modes = () => replicas.map(({ verification }) => (verification.limits as SharedLimits).mode);
  await eventually(async () => modes().every((mode) => mode === 'shared'));
  const input = { role: 'verifier', scopes: ['read'], name: 'For all' };
  const { body: token } = await first.operator.post('/v1/access-tokens', input);
  const verify = async (replica: typeof first, key: string) =>
    (await replica.as(token.token).post('/v1/verify', { key, permission: 'read' })).body;

  const counted = () =>
    Promise.all(cluster.nodes.map(({ client }) => client.keys('latchkey:limit:{*').then((names) => names.length)));

  // Owners are added until every server has some. Each use counts against the owner's bucket and the key's own.
  let owners = 0;
  for (; owners < 12 || (await counted()).includes(0); owners += 1) {
    if (owners === 100) throw new Error(`a server counts for none of ${owners} owners: ${await counted()}`);
    const { body: partner } = await first.admin.post('/v1/partners', {
      email: `p${owners}@p.example`,
      permissions: ['read'],
      rateLimit: { requests: 5, windowSeconds: 60 },
    });
    const rateLimit = { requests: 2, windowSeconds: 60 };
    const { body: narrow } = await first.admin.post('/v1/keys', { partnerId: partner.id, rateLimit });
    const codes = [];
    for (const replica of [first, second, first, second]) codes.push((await verify(replica, narrow.key)).code);
    t.same(codes, ['valid', 'valid', 'rate_limited', 'rate_limited']);
    t.match(await verify(second, partner.keys[0].key), { code: 'valid', rateLimit: { limit: 5, remaining: 2 } });
  }
  const names = (await counted()).reduce((sum, ofServer) => sum + ofServer, 0);
  t.equal(names, 2 * owners);
  await delay(2_000);
  t.same(modes(), ['shared', 'shared']);
  for (const { logLines } of replicas) {
    t.notMatch(logLines.join(''), /in its own memory/, 'no replica fell back to memory');
  }
  const doctor = runEntry(t, 'cli/latchkey.ts', ['doctor'], {
    env: { DATABASE_URL: first.urls.app, LATCHKEY_KEYRING: keyringText('new'), REDIS_URL: cluster.url },
  });
  await doctor.exited;
  t.match(doctor.output(), /^ok {6}Redis counts rate limits for all replicas\.$/m);

  // With one server down some keys cannot be counted there, so all are counted in memory, without switching back and
  // forth.
  cluster.nodes[2]?.process.child.kill('SIGKILL');
  const { body: key } = await first.admin.post('/v1/keys', {});
  await eventually(async () => {
    t.equal((await verify(first, key.key)).code, 'valid');
    return modes()[0] === 'memory';
  });
  const switches = () => first.logLines.filter((line) => /counted in Redis|own memory/.test(line)).length;
  const before = switches();
  await delay(4_000);
  t.equal(switches(), before);
  t.equal((await verify(first, key.key)).code, 'valid');
});

t.test('a server of the cluster that restarts at once counts again, while keys are verified', { skip }, async (t) => {
  const cluster = await startRedisCluster(t);
  const warnings: unknown[] = [];
  const logger = { info: () => undefined, warn: (...parts: unknown[]) => void warnings.push(parts) };
  const limits = createSharedLimits({ url: cluster.url, logger });
  t.teardown(() => limits.close());
  await limits.decided;
  t.equal(limits.mode, 'shared');
  let uses = 0;
  const use = async () => {
    uses += 1;
    await limits.count([{ id: `partner_${uses % 50}`, requests: 1_000_000, windowSeconds: 60 }], 1);
  };
  const using = setInterval(() => void use(), 5);
  t.teardown(() => clearInterval(using));
  const [node] = cluster.nodes;
  node?.process.child.kill('SIGKILL');
  await node?.process.exited;
  await eventually(async () => warnings.length > 0);
  t.equal(limits.mode, 'memory');
  // Less than the node timeout of the cluster, which therefore never counts as failed.
  await delay(1_500);
  await node?.restart();
  await eventually(async () => limits.mode === 'shared');
});

t.test('doctor reports what prevents Redis from counting', { skip }, async (t) => {
  const { urls } = await startService(t, { keyring: keyringOf('new') });
  const doctor = async (REDIS_URL: string) => {
    const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText('new'), REDIS_URL };
    const process = runEntry(t, 'cli/latchkey.ts', ['doctor'], { env });
    const { code } = await process.exited;
    return { code, output: process.output() };
  };
  const { url } = await startRedis(t);
  t.match(await doctor(url), { code: 0, output: /^ok {6}Redis counts/m });
  t.match(await doctor(`redis://127.0.0.1:${await freePort()}`), {
    code: 1,
    output: /^wrong {3}Redis cannot count rate limits: .*ECONNREFUSED.*REDIS_URL/m,
  });
});

t.test('a slow Redis connection causes no warning at the start', { skip }, async (t) => {
  const redis = await startRedis(t);
  let connections = 0;
  const slow = await listenRaw(t, (socket) => {
    connections += 1;
    const waitMs = connections === 1 ? 800 : 0;
    const forward = async () => {
      await delay(waitMs);
      const upstream = connect(Number(new URL(redis.url).port), '127.0.0.1');
      upstream.on('error', () => socket.destroy());
      socket.pipe(upstream).pipe(socket);
    };
    void forward();
  });
  const warnings: unknown[] = [];
  const logger = { info: () => undefined, warn: (...parts: unknown[]) => void warnings.push(parts) };
  const limits = createSharedLimits({ url: `redis://127.0.0.1:${slow.port}`, logger });
  t.teardown(() => limits.close());
  await limits.decided;
  t.equal(limits.mode, 'shared');
  t.same(warnings, []);
});

t.test('URLs of clusters are parsed', async (t) => {
  t.match(clusterNodes('redis+cluster://a:7000,b,[::1]:7002'), {
    nodes: [
      { host: 'a', port: 7_000 },
      { host: 'b', port: 6_379 },
      { host: '::1', port: 7_002 },
    ],
    options: {},
  });
  t.same(clusterNodes('rediss+cluster://user:p%40ss@a:7000/')?.options, {
    username: 'user',
    password: 'p@ss',
    tls: {},
  });
  for (const url of [
    'redis://a:1',
    'redis+cluster://',
    'redis+cluster://a,,b',
    'redis+cluster://a:x',
    'redis+cluster://a/0',
  ]) {
    t.equal(clusterNodes(url), undefined, url);
  }
});
