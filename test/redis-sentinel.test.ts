import { setTimeout as delay } from 'node:timers/promises';
import { Redis } from 'ioredis';
import type { SharedLimits } from '../src/verification/shared-limits.ts';
import { startService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { startSentinelPair } from './support/redis-sentinel.ts';
import { t } from './support/tap.ts';

const skip = unlessInstalled('redis-server') || unlessInstalled('haproxy');
const requests = 1_000_000;

for (const how of ['killed', 'hung'] as const) {
  const guarantee =
    'verification goes on, and the replicas share their limits at the new primary with the counts so far';
  t.test(`if the Redis primary is ${how} and Sentinel promotes the other, ${guarantee}`, { skip }, async (t) => {
    const { url, primary, replica, balancer } = await startSentinelPair(t);
    const first = await startService(t, { state: { redisUrl: url } });
    const second = await startService(t, {
      state: { redisUrl: url },
      urls: first.urls,
      keyring: first.keyring,
    });
    const services = [first, second];
    const areAll = (mode: SharedLimits['mode']) =>
      services.every(({ verification }) => (verification.limits as SharedLimits).mode === mode);
    await eventually(async () => areAll('shared'));

    const input = { role: 'verifier', scopes: ['read'], name: 'For all' };
    const { body: token } = await first.operator.post('/v1/access-tokens', input);
    await first.admin.put('/v1/rate-limit', { requests, windowSeconds: 3_600 });
    const { body: key } = await first.admin.post('/v1/keys', {});
    let uses = 0;
    const replies: string[] = [];
    const use = async (service: typeof first): Promise<number> => {
      const { status, body } = await service.as(token.token).post('/v1/verify', { key: key.key, permission: 'read' });
      uses += 1;
      replies.push(`${status} ${body.code}`);
      return body.rateLimit?.remaining;
    };
    /** What remains after uses by both in turn, if each use counted for both. */
    const together = async () => {
      const remaining: number[] = [];
      for (const service of [first, second, first, second]) remaining.push(await use(service));
      const [most = 0] = remaining;
      return remaining.every((left, index) => left === most - index) && remaining;
    };
    t.match(await together(), { 0: requests - 1, 3: requests - 4 });

    let isUsing = true;
    t.teardown(() => {
      isUsing = false;
    });
    const using = services.map(async (service) => {
      for (; isUsing; await delay(5)) await use(service);
    });
    await eventually(async () => uses > 100);
    primary.process.child.kill(how === 'killed' ? 'SIGKILL' : 'SIGSTOP');
    await eventually(async () => areAll('memory'));
    // Sentinel ends the connections of a server that it promotes or demotes.
    const isPrimary = async ({ client }: typeof primary) => (await client.role().catch(() => []))[0] === 'master';
    await eventually(() => isPrimary(replica));
    await eventually(async () => areAll('shared'), 10_000);

    // The old primary is back, and reports that it is the primary until Sentinel corrects it after about ten seconds.
    await balancer.until(/redis1 is DOWN/);
    if (how === 'killed') await primary.restart();
    else primary.process.child.kill('SIGCONT');
    await balancer.until(/redis1 is DOWN.*redis1 is UP/s);
    for (let connection = 0; connection < 10; connection++) {
      const client = new Redis(url);
      const info = await client.info('server').finally(() => client.disconnect());
      t.match(info, `tcp_port:${replica.port}`, 'a new connection leads to the new primary');
    }
    await eventually(() => isPrimary(primary), 2_000);
    isUsing = false;
    await Promise.all(using);

    // Not at once: a timer of ioredis may close the first connection to the new primary.
    const remaining = await eventually(together);
    t.ok(areAll('shared'));
    const counted = requests - (remaining.at(-1) ?? 0);
    // The few uses of the moment of the failure may be missing, or counted twice if only their reply was lost.
    t.ok(Math.abs(counted - uses) <= 10, `${counted} counted of ${uses}`);
    t.same([...new Set(replies)], ['200 valid']);
    for (const { logLines } of services) {
      const logged = logLines
        .filter((line) => /counted in Redis|own memory/.test(line))
        .map((line) => JSON.parse(line));
      t.match(logged.at(1)?.msg, 'Each replica counts rate limits in its own memory');
      t.equal(logged.at(-1)?.msg, 'Rate limits are counted in Redis.');
    }
  });
}
