import { Cluster, type ClusterOptions, Redis, type RedisOptions } from 'ioredis';
import { clusterNodes } from '../lib/redis-url.ts';

type ScriptCommand = (...parts: Array<string | number>) => Promise<number[]>;

export interface RedisClient {
  /** Runs the script that counts. @param buckets one or two names, in a cluster of one slot */
  countUse(buckets: readonly string[], args: readonly number[]): Promise<number[]>;
  /** Fails unless every server that counts takes writes: a replica, or one without memory, is of no use here. */
  probe(): Promise<void>;
  isReady(): boolean;
  on(event: 'ready' | 'error' | 'close', listener: (error?: Error) => void): void;
  close(): void;
}

/** Longer than this and a verification does not wait for Redis any more. */
const patienceMs = 250;

const perServer: RedisOptions = {
  commandTimeout: patienceMs,
  connectTimeout: 1_000,
  maxRetriesPerRequest: 0,
  // After a failover the old primary may still be there, as a replica; the name leads to the new one.
  reconnectOnError: (error) => error.message.startsWith('READONLY'),
};

const shared = {
  enableOfflineQueue: false,
  enableAutoPipelining: true,
} satisfies RedisOptions & ClusterOptions;

/** A bucket that belongs to nobody. */
const probesAllowed = 1_000_000_000;
const probedBucketMs = 1_000;

/** So many buckets are in different hash slots, and so very likely on every primary of a cluster. */
const probesOfCluster = 32;

/** Connects to a Redis, a Valkey or a cluster of them, and goes on trying for as long as it is open. */
export function connectRedis(url: string, countScript: string): RedisClient {
  // By the number of names: ioredis finds a cluster's slot by the first argument, which must be a name then.
  const scripts = { countOne: { lua: countScript, numberOfKeys: 1 }, countTwo: { lua: countScript, numberOfKeys: 2 } };
  const retry = (attempt: number) => Math.min(attempt * 100, 1_000);
  const cluster = clusterNodes(url);
  const redis =
    cluster === undefined
      ? new Redis(url, { ...perServer, ...shared, scripts, retryStrategy: retry })
      : new Cluster(cluster.nodes, {
          ...shared,
          scripts,
          redisOptions: { ...perServer, ...cluster.options },
          clusterRetryStrategy: retry,
          // Certificates are for names, and what a cluster says of its nodes is looked up as it is.
          dnsLookup: (address, callback) => callback(null, address),
          maxRedirections: 3,
          retryDelayOnFailover: 50,
          retryDelayOnClusterDown: 50,
          slotsRefreshTimeout: 1_000,
        });
  const commands = redis as unknown as Record<keyof typeof scripts, ScriptCommand>;
  const countUse: RedisClient['countUse'] = (buckets, args) =>
    buckets.length === 1 ? commands.countOne(...buckets, ...args) : commands.countTwo(...buckets, ...args);
  const probes = cluster === undefined ? 1 : probesOfCluster;
  return {
    countUse,
    async probe() {
      const names = Array.from({ length: probes }, (_, index) => `latchkey:limit:probe:${index}`);
      await Promise.all(names.map((name) => countUse([name], [1, 1, probesAllowed, probedBucketMs])));
    },
    isReady: () => redis.status === 'ready',
    on: (event, listener) => void redis.on(event, listener),
    close() {
      redis.removeAllListeners('close');
      redis.disconnect();
    },
  };
}
