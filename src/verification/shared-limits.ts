import type { FastifyBaseLogger } from 'fastify';
import { Redis } from 'ioredis';
import { bucketName, createMemoryLimits, toCount, type UseBuckets, type UseLimits } from './limits.ts';

export interface SharedLimits extends UseLimits {
  /** `shared`: counted in Redis; `memory`: Redis has failed, and each replica counts by itself. */
  readonly mode: 'shared' | 'memory';
  /** Resolves as soon as it is known whether Redis answers. */
  readonly decided: Promise<void>;
  close(): Promise<void>;
}

interface SharedLimitsOptions {
  /** Redis or Valkey, such as `redis://host:6379`. */
  url: string;
  logger: Pick<FastifyBaseLogger, 'warn' | 'info'>;
}

/**
 * Looks at every bucket and counts them all or none, as one step of the server.
 * KEYS: the buckets. ARGV: the cost, then for each bucket its limit and its window in milliseconds.
 * Returns the place of the bucket that refuses (0: none), then for each what it has counted and when it ends.
 */
const countScript = `
local cost = tonumber(ARGV[1])
local refusing = 0
local answer = { 0 }
for place, name in ipairs(KEYS) do
  local used = tonumber(redis.call('get', name) or '0')
  if refusing == 0 and cost > 0 and used + cost > tonumber(ARGV[place * 2]) then refusing = place end
end
for place, name in ipairs(KEYS) do
  local window = tonumber(ARGV[place * 2 + 1])
  if refusing == 0 and cost > 0 then
    redis.call('incrby', name, cost)
    if redis.call('pttl', name) < 0 then redis.call('pexpire', name, window) end
  end
  local left = redis.call('pttl', name)
  table.insert(answer, tonumber(redis.call('get', name) or '0'))
  table.insert(answer, left < 0 and window or left)
end
answer[1] = refusing
return answer`;

/** Longer than this and a verification does not wait for Redis any more. */
const patienceMs = 250;
const probeEveryMs = 500;

type CountCommand = (keys: number, ...parts: Array<string | number>) => Promise<number[]>;

/** Counts in a Redis that several replicas share. Where it fails, each goes on with its own memory and says so. */
export function createSharedLimits({ url, logger }: SharedLimitsOptions): SharedLimits {
  const memory = createMemoryLimits();
  const redis = new Redis(url, {
    commandTimeout: patienceMs,
    connectTimeout: 1_000,
    enableOfflineQueue: false,
    enableAutoPipelining: true,
    maxRetriesPerRequest: 0,
    retryStrategy: (attempt) => Math.min(attempt * 100, 1_000),
    scripts: { countUse: { lua: countScript } },
  });
  const countUse = (redis as unknown as { countUse: CountCommand }).countUse.bind(redis);
  let mode: SharedLimits['mode'] | undefined;
  let decide: () => void = () => undefined;
  const decided = new Promise<void>((resolve) => {
    decide = resolve;
  });

  function turn(next: SharedLimits['mode'], cause?: unknown): void {
    if (next === mode) return;
    mode = next;
    decide();
    if (next === 'shared') logger.info('Rate limits are counted in Redis.');
    else logger.warn({ err: cause }, 'Redis does not answer; each replica counts rate limits in its own memory.');
  }

  const probe = () =>
    redis.ping().then(
      () => turn('shared'),
      (error: unknown) => turn('memory', error),
    );
  redis.on('ready', probe);
  redis.on('error', (error) => turn('memory', error));
  redis.on('close', () => turn('memory', new Error('the connection was closed')));
  const timer = setInterval(() => {
    if (mode !== 'shared') void probe();
  }, probeEveryMs).unref();

  async function countInRedis(buckets: UseBuckets, cost: number) {
    const parts = buckets.flatMap((bucket) => (bucket === undefined ? [] : [bucket]));
    const [owner] = buckets;
    try {
      const answer = await countUse(
        parts.length,
        // The braces keep all buckets of one use in the same slot of a cluster.
        ...parts.map((bucket) => `latchkey:limit:{${owner.id}}:${bucketName(bucket)}`),
        cost,
        ...parts.flatMap(({ requests, windowSeconds }) => [requests, windowSeconds * 1000]),
      );
      const [refusing = 0, ...rest] = answer;
      const levels = parts.map((_, index) => ({ used: rest[index * 2] ?? 0, resetMs: rest[index * 2 + 1] ?? 0 }));
      return toCount(buckets, levels, refusing === 0 ? undefined : refusing - 1);
    } catch (error) {
      turn('memory', error);
      return memory.count(buckets, cost);
    }
  }

  return {
    get mode() {
      return mode ?? 'memory';
    },
    decided,
    count: (buckets, cost) => (mode === 'shared' ? countInRedis(buckets, cost) : memory.count(buckets, cost)),
    async close() {
      clearInterval(timer);
      redis.disconnect();
    },
  };
}
