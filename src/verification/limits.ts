import { Problem } from '../domain/errors.ts';
import { limitSentence } from '../domain/rate-limit.ts';
import { minuteMs, secondMs } from '../lib/durations.ts';
import type { MaybePromise } from '../lib/maybe-promise.ts';

/** A limit and its current window. */
export interface Bucket {
  /** The owner's id; for a key's own limit, the id of the first key in its chain of rotations. */
  readonly id: string;
  readonly requests: number;
  readonly windowSeconds: number;
  /** The window that this process counted in last; saves a lookup. */
  window?: Window | undefined;
}

/** A time span whose uses are counted together. */
export interface Window {
  used: number;
  /** The part of `used` that Redis has not confirmed; without Redis all of it. */
  unshared: number;
  /** Monotonic milliseconds. */
  endsAtMs: number;
  /** When Redis last confirmed `used`; monotonic milliseconds. */
  sharedAtMs: number;
}

/** The state of a limit after a use: of the bucket that rejected it, otherwise of the bucket with the least remaining. */
export interface Count {
  isExceeded: boolean;
  limit: number;
  windowSeconds: number;
  remaining: number;
  resetSeconds: number;
  /** Whether the limit is the owner's or the key's own. */
  policy: 'owner' | 'key';
}

/**
 * Counts uses of keys, by the same rules in memory and in Redis:
 * - A window begins with its first counted use and ends after the bucket's window length.
 * - A changed window length begins another bucket; a changed number of requests applies at once to the current count.
 * - Both buckets are checked before either is counted: a use that one rejects costs the other nothing. Cost 0 counts nothing.
 */
export interface UseLimits {
  /** `shared`: counted in Redis; `memory`: in this process. */
  readonly mode: 'shared' | 'memory';
  count(buckets: UseBuckets, cost: number, options?: CountOptions): MaybePromise<Count>;
}

export interface CountOptions {
  /** The use was allowed before: count it beyond the limit too, and never reject it. */
  isAlreadyAllowed?: boolean;
}

/** The bucket shared by all keys of the owner (a partner or the organization), and the key's own bucket if it has one. */
export type UseBuckets = readonly [owner: Bucket] | readonly [owner: Bucket, key: Bucket];

/** A key whose uses are limited. */
export interface LimitedKey {
  readonly ownerBucket: Bucket;
  readonly ownBucket: Bucket | null;
}

/** The buckets that count a key's uses. */
export function bucketsOf({ ownerBucket, ownBucket }: LimitedKey): UseBuckets {
  return ownBucket === null ? [ownerBucket] : [ownerBucket, ownBucket];
}

/** The name under which a bucket's window is stored, in memory and in Redis. */
export function bucketName({ id, windowSeconds }: Bucket): string {
  return `${id}:${windowSeconds}`;
}

/**
 * Rejects a cost that exceeds a whole window: waiting would not help.
 * @throws Problem `cost_exceeds_limit`
 */
export function requireCostFits({ ownerBucket, ownBucket }: LimitedKey, cost: number): void {
  if (cost <= ownerBucket.requests && (ownBucket === null || cost <= ownBucket.requests)) return;
  const isOwners = ownBucket === null || ownerBucket.requests <= ownBucket.requests;
  const { requests: limit, windowSeconds } = isOwners ? ownerBucket : ownBucket;
  const policy = isOwners ? 'owner' : 'key';
  const sentence = limitSentence({ policy, limit, windowSeconds });
  throw new Problem('cost_exceeds_limit', `The cost ${cost} exceeds the limit of a whole window. ${sentence}`, {
    members: { policy, limit, windowSeconds },
  });
}

/** The count of one bucket. */
export interface Level {
  used: number;
  resetMs: number;
}

/** @param levels after counting, in the buckets' order @param exceededIndex the index of the bucket that rejected the use */
export function toCount(buckets: UseBuckets, levels: readonly Level[], exceededIndex: number | undefined): Count {
  const counts = buckets.map((bucket, index) => {
    const { used, resetMs } = levels[index] ?? { used: 0, resetMs: 0 };
    return {
      isExceeded: exceededIndex === index,
      limit: bucket.requests,
      windowSeconds: bucket.windowSeconds,
      remaining: Math.max(0, bucket.requests - used),
      resetSeconds: Math.max(1, Math.ceil(resetMs / secondMs)),
      policy: index === 0 ? ('owner' as const) : ('key' as const),
    };
  });
  const [owner, key] = counts;
  if (owner === undefined) throw new Error('a use is counted against at least one bucket');
  if (key === undefined || owner.isExceeded) return owner;
  return key.isExceeded || key.remaining <= owner.remaining ? key : owner;
}

/** Counts of a bucket's window that this process has and Redis may lack. */
export interface UnsharedCount {
  /** The count that Redis last confirmed. */
  shared: number;
  /** Counted in this process while Redis did not answer. */
  unshared: number;
  /** Time until the window ends. */
  leftMs: number;
  /** Returns `unshared` to memory after a failed transfer. */
  putBack(): void;
}

/** Limits that are counted in this process and can exchange counts with Redis. */
export interface MemoryLimits extends UseLimits {
  count(buckets: UseBuckets, cost: number, options?: CountOptions): Count;
  /** Takes over the count of a bucket in Redis. */
  adopt(bucket: Bucket, level: Level): void;
  /**
   * Takes the counts that must be added in Redis before it counts the bucket. Usually undefined: none.
   * @param sinceMs when Redis last became available; counts confirmed since then are not returned
   */
  takeUnsharedCount(bucket: Bucket, sinceMs: number): UnsharedCount | undefined;
}

const sweepEveryMs = minuteMs;

/**
 * Counts in this process's memory. A bucket is never evicted while its window lasts. Only valid keys are counted, so there
 * are at most as many buckets as owners and keys with their own limit.
 * @param nowMs a monotonic clock
 */
export function createMemoryLimits(nowMs: () => number = () => performance.now()): MemoryLimits {
  const windows = new Map<string, Window>();
  let sweptAtMs = nowMs();

  function sweep(now: number): void {
    if (now - sweptAtMs < sweepEveryMs) return;
    sweptAtMs = now;
    for (const [id, { endsAtMs }] of windows) if (endsAtMs <= now) windows.delete(id);
  }

  function currentWindow(bucket: Bucket, now: number): Window | undefined {
    const last = bucket.window;
    if (last !== undefined && last.endsAtMs > now) return last;
    const known = windows.get(bucketName(bucket));
    if (known === undefined || known.endsAtMs <= now) return undefined;
    bucket.window = known;
    return known;
  }

  /** The bucket's current window, or a new one that begins now. */
  function windowOf(bucket: Bucket, now: number): Window {
    const endsAtMs = Math.floor(now) + bucket.windowSeconds * secondMs;
    return currentWindow(bucket, now) ?? { used: 0, unshared: 0, endsAtMs, sharedAtMs: 0 };
  }

  function use(bucket: Bucket, window: Window, cost: number): void {
    window.used += cost;
    if (bucket.window === window) return;
    bucket.window = window;
    windows.set(bucketName(bucket), window);
  }

  function count(buckets: UseBuckets, cost: number, { isAlreadyAllowed = false }: CountOptions = {}): Count {
    const now = nowMs();
    sweep(now);
    const present = buckets.map((bucket) => ({ bucket, window: windowOf(bucket, now) }));
    const isOverLimit = ({ bucket, window }: (typeof present)[number]) => window.used + cost > bucket.requests;
    const exceededIndex = !isAlreadyAllowed && cost > 0 ? present.findIndex(isOverLimit) : -1;
    if (exceededIndex < 0 && cost > 0) {
      for (const { bucket, window } of present) {
        use(bucket, window, cost);
        window.unshared += cost;
      }
    }
    // Whole milliseconds: rounding errors of fractions could add a second to `resetSeconds`.
    const levels = present.map(({ window: { used, endsAtMs } }) => ({ used, resetMs: Math.round(endsAtMs - now) }));
    return toCount(buckets, levels, exceededIndex < 0 ? undefined : exceededIndex);
  }

  return {
    mode: 'memory',
    count,
    adopt(bucket, { used, resetMs }) {
      const now = nowMs();
      sweep(now);
      if (used === 0) return;
      const window = windowOf(bucket, now);
      use(bucket, window, used + window.unshared - window.used);
      window.endsAtMs = Math.floor(now) + resetMs;
      window.sharedAtMs = now;
    },
    takeUnsharedCount(bucket, sinceMs) {
      const now = nowMs();
      const window = currentWindow(bucket, now);
      if (window === undefined || (window.unshared === 0 && window.sharedAtMs >= sinceMs)) return undefined;
      const { used, unshared, endsAtMs } = window;
      window.unshared = 0;
      return {
        shared: used - unshared,
        unshared,
        leftMs: Math.max(1, Math.round(endsAtMs - now)),
        putBack() {
          window.unshared += unshared;
        },
      };
    },
  };
}
