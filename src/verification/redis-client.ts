import { Cluster, type ClusterOptions, Redis, type RedisOptions } from 'ioredis';
import { clusterNodes } from '../lib/redis-url.ts';

type ScriptCommand = (...parts: Array<string | number>) => Promise<number[]>;

/** A connection to Redis that counts uses by a script. */
export interface RedisClient {
  /** Runs the counting script. @param buckets one or two names; in a cluster both in the same slot */
  countUse(buckets: readonly string[], args: readonly number[]): Promise<number[]>;
  /** Fails unless every primary accepts writes: a replica or a full server cannot count. */
  probe(): Promise<void>;
  isReady(): boolean;
  on(event: 'ready' | 'error' | 'close', listener: (error?: Error) => void): void;
  close(): void;
}

/** How long a verification waits for Redis at most. */
const commandTimeoutMs = 250;

const perServer: RedisOptions = {
  commandTimeout: commandTimeoutMs,
  connectTimeout: 1_000,
  // A lost machine closes no connection. The new one leads to the server that has its name or address now.
  socketTimeout: 1_000,
  maxRetriesPerRequest: 0,
  // After a failover the connection may lead to a replica; a new one leads to the new primary.
  reconnectOnError: (error) => error.message.startsWith('READONLY'),
};

const shared = {
  enableOfflineQueue: false,
  enableAutoPipelining: true,
} satisfies RedisOptions & ClusterOptions;

/** Limit and window of the buckets that only probes count in. */
const probeLimit = 1_000_000_000;
const probeWindowMs = 1_000;

/** So many buckets fall into different hash slots and so very likely reach every primary of a cluster. */
const clusterProbeCount = 32;

/** Connects to Redis, Valkey or a cluster, and reconnects until it is closed. */
export function connectRedis(url: string, countScript: string): RedisClient {
  // One command per number of keys: ioredis finds the cluster slot by the first argument, which must be a key.
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
          // No lookup: certificates are issued for the names that the cluster reports.
          dnsLookup: (address, callback) => callback(null, address),
          maxRedirections: 3,
          retryDelayOnFailover: 50,
          retryDelayOnClusterDown: 50,
          slotsRefreshTimeout: 1_000,
        });
  const commands = redis as unknown as Record<keyof typeof scripts, ScriptCommand>;
  const countUse: RedisClient['countUse'] = (buckets, args) =>
    buckets.length === 1 ? commands.countOne(...buckets, ...args) : commands.countTwo(...buckets, ...args);
  const probes = cluster === undefined ? 1 : clusterProbeCount;
  return {
    countUse,
    async probe() {
      // One after the other: ioredis follows MOVED, to a server that is back or has new slots, only for a command that
      // shares its pipeline with no command of another slot.
      for (let index = 0; index < probes; index++) {
        await countUse([`latchkey:limit:probe:${index}`], [1, 1, probeLimit, probeWindowMs]);
      }
    },
    isReady: () => redis.status === 'ready',
    on: (event, listener) => void redis.on(event, listener),
    close() {
      redis.removeAllListeners('close');
      redis.disconnect();
    },
  };
}
