import type { FastifyBaseLogger } from 'fastify';
import { within } from '../lib/deadline.ts';
import { createDeferred } from '../lib/deferred.ts';
import { createHealthSwitch } from '../lib/health-switch.ts';
import { startPeriodicTask } from '../lib/periodic-task.ts';
import {
  type Bucket,
  bucketName,
  type Count,
  type CountOptions,
  createMemoryLimits,
  toCount,
  type UnsharedCount,
  type UseBuckets,
  type UseLimits,
} from './limits.ts';
import { connectRedis } from './redis-client.ts';

/** Limits that several replicas count together in Redis. */
export interface SharedLimits extends UseLimits {
  /** Resolves once Redis has answered or failed for the first time. */
  readonly decided: Promise<void>;
  close(): Promise<void>;
}

interface SharedLimitsOptions {
  /** Redis or Valkey, such as `redis://host:6379`, or a cluster, `redis+cluster://host:6379,host:6379`. */
  url: string;
  logger: Pick<FastifyBaseLogger, 'warn' | 'info'>;
}

/**
 * Counts all buckets or none, in one atomic step.
 * KEYS: the buckets. ARGV: cost; whether a bucket may reject (1 or 0); for each bucket its limit and its window in ms; then
 * optionally, for each bucket, the count that Redis confirmed last, the count made in memory since, and the window's rest in ms.
 * Returns the position of the rejecting bucket (0: none), then for each bucket its count and the ms until its window ends.
 */
const countScript = `
local cost = tonumber(ARGV[1])
local mayReject = cost > 0 and ARGV[2] == '1'
local rejecting = 0
local used = {}
local left = {}
for place, name in ipairs(KEYS) do
  left[place] = redis.call('pttl', name)
  used[place] = left[place] > 0 and tonumber(redis.call('get', name)) or 0
  local unshared = 2 + #KEYS * 2 + (place - 1) * 3
  if ARGV[unshared + 1] then
    local caughtUp = math.max(used[place], tonumber(ARGV[unshared + 1])) + tonumber(ARGV[unshared + 2])
    if caughtUp > used[place] then
      if used[place] == 0 then left[place] = tonumber(ARGV[unshared + 3]) end
      used[place] = caughtUp
      redis.call('set', name, caughtUp, 'px', left[place])
    end
  end
  if used[place] == 0 then left[place] = tonumber(ARGV[place * 2 + 2]) end
  if rejecting == 0 and mayReject and used[place] + cost > tonumber(ARGV[place * 2 + 1]) then rejecting = place end
end
local answer = { rejecting }
for place, name in ipairs(KEYS) do
  if rejecting == 0 and cost > 0 then
    used[place] = used[place] + cost
    redis.call('set', name, used[place], 'px', left[place])
  end
  table.insert(answer, used[place])
  table.insert(answer, left[place])
end
return answer`;

const probeEveryMs = 500;

/** How long the start waits for Redis; after that each replica counts in its own memory. */
const decideWithinMs = 2_000;

function toScriptArguments(unshared: UnsharedCount | undefined): number[] {
  return unshared === undefined ? [0, 0, 0] : [unshared.shared, unshared.unshared, unshared.leftMs];
}

/** The owner's id is the hash tag, so a cluster stores all buckets of a use in one slot. */
function nameInRedis(bucket: Bucket, [owner]: UseBuckets): string {
  return `latchkey:limit:{${owner.id}}:${bucketName(bucket)}`;
}

/** Checks once that Redis can count. @throws the reason if it cannot */
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
 * Counts in a Redis that several replicas share. If Redis fails, each replica counts in its own memory and logs a warning.
 * When Redis is back, the counts from memory are added before a bucket is counted there.
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
    } else
      logger.warn(
        { err: cause },
        'Redis does not answer. Each replica counts rate limits in its own memory until Redis is back.',
      );
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
      // Not before the connection is ready: a slow start is no failure, and `error` reports a failed connection.
      if (health.isHealthy !== true && (redis.isReady() || !isStarting())) await probe();
    },
  });

  async function countInRedis(buckets: UseBuckets, cost: number, options: CountOptions): Promise<Count> {
    const unshared = buckets.map((bucket) => memory.takeUnsharedCount(bucket, sharedSinceMs));
    try {
      const answer = await redis.countUse(
        buckets.map((bucket) => nameInRedis(bucket, buckets)),
        [
          cost,
          options.isAlreadyAllowed === true ? 0 : 1,
          ...buckets.flatMap(({ requests, windowSeconds }) => [requests, windowSeconds * 1000]),
          ...(unshared.some(Boolean) ? unshared.flatMap(toScriptArguments) : []),
        ],
      );
      const [rejecting = 0, ...rest] = answer;
      const levels = buckets.map((bucket, index) => {
        const level = { used: rest[index * 2] ?? 0, resetMs: rest[index * 2 + 1] ?? 0 };
        // If Redis fails later, memory continues from this count.
        memory.adopt(bucket, level);
        return level;
      });
      return toCount(buckets, levels, rejecting === 0 ? undefined : rejecting - 1);
    } catch (error) {
      fail(error);
      for (const missed of unshared) missed?.putBack();
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
