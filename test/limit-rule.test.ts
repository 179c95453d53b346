import type { Test } from 'tap';
import type { Bucket } from '../src/verification/limits.ts';
import { createMemoryLimits, type UseLimits } from '../src/verification/limits.ts';
import { createSharedLimits } from '../src/verification/shared-limits.ts';
import { eventually } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { startRedis } from './support/redis.ts';
import { t } from './support/tap.ts';

// The same uses give the same counts in memory and in Redis (src/verification/limits.ts).

const silent = { info: () => undefined, warn: () => undefined };

const counters: Record<string, { skip?: string | false; start: (t: Test) => Promise<UseLimits> }> = {
  memory: { start: async () => createMemoryLimits() },
  Redis: {
    skip: unlessInstalled('redis-server'),
    async start(t) {
      const limits = createSharedLimits({ url: (await startRedis(t)).url, logger: silent });
      t.teardown(() => limits.close());
      await eventually(async () => limits.mode === 'shared');
      return limits;
    },
  },
};

type Owner = [requests: number, windowSeconds: number];

interface Use {
  owner: Owner;
  key?: Owner;
  cost?: number;
  how?: 'add';
  /** `!` means rejected. Then the limit that is reported, and its remaining uses. */
  left: `${'' | '!'}${'owner' | 'key'} ${number}`;
}

const table: Record<string, Use[]> = {
  'a window length that changes and comes back keeps its count': [
    { owner: [60, 60], cost: 52, left: 'owner 8' },
    { owner: [60, 30], left: 'owner 59' },
    { owner: [60, 60], left: 'owner 7' },
    { owner: [60, 30], left: 'owner 58' },
    { owner: [60, 60], cost: 8, left: '!owner 7' },
  ],
  'the same for the limit of a key': [
    { owner: [100, 60], key: [10, 60], cost: 9, left: 'key 1' },
    { owner: [100, 60], key: [10, 3_600], cost: 9, left: 'key 1' },
    { owner: [100, 60], key: [10, 60], cost: 2, left: '!key 1' },
    { owner: [100, 60], key: [10, 60], cost: 1, left: 'key 0' },
  ],
  'a changed limit applies at once to earlier uses': [
    { owner: [10, 60], cost: 5, left: 'owner 5' },
    { owner: [3, 60], left: '!owner 0' },
    { owner: [6, 60], left: 'owner 0' },
    { owner: [20, 60], left: 'owner 13' },
  ],
  'a use that one limit rejects does not count against the other': [
    { owner: [5, 60], key: [2, 60], cost: 2, left: 'key 0' },
    { owner: [5, 60], key: [2, 60], left: '!key 0' },
    { owner: [5, 60], cost: 3, left: 'owner 0' },
    { owner: [5, 60], key: [9, 60], left: '!owner 0' },
    { owner: [9, 60], key: [9, 60], cost: 0, left: 'owner 4' },
  ],
  'cost 0 uses nothing, and uses that were already allowed are counted beyond the limit': [
    { owner: [3, 60], cost: 0, left: 'owner 3' },
    { owner: [3, 60], cost: 7, how: 'add', left: 'owner 0' },
    { owner: [3, 60], cost: 0, left: 'owner 0' },
    { owner: [8, 60], left: 'owner 0' },
    { owner: [8, 60], left: '!owner 0' },
  ],
};

for (const [name, { skip = false, start }] of Object.entries(counters)) {
  t.test(`in ${name}, limits follow the rule`, { skip }, async (t) => {
    const limits = await start(t);
    for (const [guarantee, uses] of Object.entries(table)) {
      const bucketOf = (id: string, [requests, windowSeconds]: Owner): Bucket => ({
        id: `${id} ${guarantee}`,
        requests,
        windowSeconds,
      });
      for (const [index, { owner, key, cost = 1, how = 'count', left }] of uses.entries()) {
        const ownerBucket = bucketOf('owner', owner);
        const buckets = key === undefined ? ([ownerBucket] as const) : ([ownerBucket, bucketOf('key', key)] as const);
        const { isExceeded, policy, remaining, resetSeconds, windowSeconds } = await limits.count(buckets, cost, {
          isAlreadyAllowed: how === 'add',
        });
        t.equal(`${isExceeded ? '!' : ''}${policy} ${remaining}`, left, `${guarantee}: use ${index + 1}`);
        t.ok(resetSeconds >= 1 && resetSeconds <= windowSeconds);
      }
    }
    const short = (requests: number): Bucket => ({ id: 'short', requests, windowSeconds: 1 });
    await limits.count([short(2)], 2);
    t.match(await limits.count([short(2)], 1), { isExceeded: true });
    await eventually(async () => !(await limits.count([short(2)], 1)).isExceeded, 5_000);
    t.match(
      await limits.count([short(2)], 0),
      { remaining: 1 },
      'a window ends, and the next begins with its first use',
    );
  });
}
