import type { FastifyBaseLogger } from 'fastify';
import { within } from '../lib/deadline.ts';
import { createDeferred } from '../lib/deferred.ts';
import { createHealthSwitch } from '../lib/health-switch.ts';
import { startPeriodicTask } from '../lib/periodic-task.ts';
import {
  type Arrears,
  type Bucket,
  bucketName,
  type Count,
  type CountOptions,
  createMemoryLimits,
  toCount,
  type UseBuckets,
  type UseLimits,
} from './limits.ts';
import { connectRedis } from './redis-client.ts';

export interface SharedLimits extends UseLimits {
  /** Resolves as soon as it is known whether Redis answers. */
  readonly decided: Promise<void>;
  close(): Promise<void>;
}

interface SharedLimitsOptions {
  /** Redis or Valkey, such as `redis://host:6379`, or a cluster, `redis+cluster://host:6379,host:6379`. */
  url: string;
  logger: Pick<FastifyBaseLogger, 'warn' | 'info'>;
}

/**
 * Judges every bucket and counts them all or none, as one step of the server. A bucket that has no end, or holds no number,
 * is overwritten.
 * KEYS: the buckets. ARGV: the cost, whether a bucket may reject (1 or 0), for each bucket its limit and its window in
 * milliseconds. Then, where there are arrears, for each bucket: what was counted here once, what was counted elsewhere
 * since, and for how long that window lasts. So what a failure of Redis has lost, or missed, is counted first.
 * Returns the place of the bucket that rejects (0: none), then for each what it has counted and when it ends.
 */
const countScript = `
local cost = tonumber(ARGV[1])
local mayRefuse = cost > 0 and ARGV[2] == '1'
local refusing = 0
local used = {}
local left = {}
for place, name in ipairs(KEYS) do
  left[place] = redis.call('pttl', name)
  used[place] = left[place] > 0 and tonumber(redis.call('get', name)) or 0
  local arrears = 2 + #KEYS * 2 + (place - 1) * 3
  if ARGV[arrears + 1] then
    local caughtUp = math.max(used[place], tonumber(ARGV[arrears + 1])) + tonumber(ARGV[arrears + 2])
    if caughtUp > used[place] then
      if used[place] == 0 then left[place] = tonumber(ARGV[arrears + 3]) end
      used[place] = caughtUp
      redis.call('set', name, caughtUp, 'px', left[place])
    end
  end
  if used[place] == 0 then left[place] = tonumber(ARGV[place * 2 + 2]) end
  if refusing == 0 and mayRefuse and used[place] + cost > tonumber(ARGV[place * 2 + 1]) then refusing = place end
end
local answer = { refusing }
for place, name in ipairs(KEYS) do
  if refusing == 0 and cost > 0 then
    used[place] = used[place] + cost
    redis.call('set', name, used[place], 'px', left[place])
  end
  table.insert(answer, used[place])
  table.insert(answer, left[place])
end
return answer`;

const probeEveryMs = 500;

/** A Redis that does not answer at the start is waited for so long; then each replica counts by itself. */
const decideWithinMs = 2_000;

function toArguments(arrears: Arrears | undefined): number[] {
  return arrears === undefined ? [0, 0, 0] : [arrears.shared, arrears.unshared, arrears.leftMs];
}

/** All buckets of a use have the owner's id as their hash tag, so a cluster has them in one slot. */
function nameInRedis(bucket: Bucket, [owner]: UseBuckets): string {
  return `latchkey:limit:{${owner.id}}:${bucketName(bucket)}`;
}

/** Whether Redis counts, for somebody who waits for the answer. @throws what keeps it from that */
export async function checkRedis(url: string, withinMs: number): Promise<void> {
  const redis = connectRedis(url, countScript);
  const { promise, resolve, reject } = createDeferred();
  try {
    redis.on('ready', () => redis.probe().then(resolve, reject));
    redis.on('error', reject);
    await within(withinMs, promise, () => {
      throw new Error(`no answer within ${withinMs} ms`);
    });
  } finally {
    redis.close();
  }
}

/**
 * Counts in a Redis that several replicas share. Where it fails, each goes on in its own memory and says so. When it is back,
 * each bucket is first raised to what was counted before and meanwhile.
 */
export function createSharedLimits({ url, logger }: SharedLimitsOptions): SharedLimits {
  const memory = createMemoryLimits();
  const redis = connectRedis(url, countScript);
  const startedAtMs = performance.now();
  let sharedSinceMs = 0;
  const decided = createDeferred();
  const health = createHealthSwitch((isShared, cause) => {
    decided.resolve();
    if (isShared) {
      sharedSinceMs = performance.now();
      logger.info('Rate limits are counted in Redis.');
    } else logger.warn({ err: cause }, 'Redis does not answer; each replica counts rate limits in its own memory.');
  });

  const isStarting = () => health.isHealthy === undefined && performance.now() - startedAtMs < decideWithinMs;

  function fail(cause: unknown): void {
    if (!isStarting()) health.set(false, cause);
  }

  const probe = () => redis.probe().then(() => health.set(true), fail);
  redis.on('ready', probe);
  redis.on('error', fail);
  redis.on('close', () => {
    if (health.isHealthy !== undefined) fail(new Error('the connection was closed'));
  });
  const probes = startPeriodicTask({
    everyMs: probeEveryMs,
    async run() {
      // Not before it is connected: a slow start is no failure, and a failed connection is reported by `error`.
      if (health.isHealthy !== true && (redis.isReady() || !isStarting())) await probe();
    },
  });

  async function countInRedis(buckets: UseBuckets, cost: number, options: CountOptions): Promise<Count> {
    const arrears = buckets.map((bucket) => memory.takeArrears(bucket, sharedSinceMs));
    try {
      const answer = await redis.countUse(
        buckets.map((bucket) => nameInRedis(bucket, buckets)),
        [
          cost,
          options.isLetIn === true ? 0 : 1,
          ...buckets.flatMap(({ requests, windowSeconds }) => [requests, windowSeconds * 1000]),
          ...(arrears.some(Boolean) ? arrears.flatMap(toArguments) : []),
        ],
      );
      const [refusing = 0, ...rest] = answer;
      const levels = buckets.map((bucket, index) => {
        const level = { used: rest[index * 2] ?? 0, resetMs: rest[index * 2 + 1] ?? 0 };
        // During a failure memory goes on from here.
        memory.adopt(bucket, level);
        return level;
      });
      return toCount(buckets, levels, refusing === 0 ? undefined : refusing - 1);
    } catch (error) {
      fail(error);
      for (const missed of arrears) missed?.putBack();
      return memory.count(buckets, cost, options);
    }
  }

  return {
    get mode() {
      return health.isHealthy === true ? 'shared' : 'memory';
    },
    decided: decided.promise,
    count: (buckets, cost, options = {}) =>
      health.isHealthy === true ? countInRedis(buckets, cost, options) : memory.count(buckets, cost, options),
    async close() {
      redis.close();
      await probes.close();
    },
  };
}
