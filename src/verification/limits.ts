import { Problem } from '../domain/errors.ts';
import { limitSentence } from '../domain/rate-limit.ts';
import { minuteMs, secondMs } from '../lib/durations.ts';
import type { MaybePromise } from '../lib/maybe-promise.ts';

/** What uses of keys count against. */
export interface Bucket {
  /** The owner's id. For a limit of the key's own: the first key of the rotations that led to this key. */
  readonly id: string;
  readonly requests: number;
  readonly windowSeconds: number;
  /** The window that this process counted in last, if it still lasts. A lookup takes longer than counting. */
  window?: Window | undefined;
}

/** Uses that are counted together. */
export interface Window {
  used: number;
  /** Of those used: counted in this process alone, where Redis could not be asked. */
  unshared: number;
  /** Monotonic milliseconds. */
  endsAtMs: number;
  /** When Redis last confirmed what is used; monotonic milliseconds. */
  sharedAtMs: number;
}

/** How a use was counted: by the bucket that refused it, else by the one with the least left. */
export interface Count {
  isExceeded: boolean;
  limit: number;
  windowSeconds: number;
  remaining: number;
  resetSeconds: number;
  /** Whose limit it is. */
  policy: 'owner' | 'key';
}

/**
 * Counts uses of keys, by the same rule in memory and in Redis:
 * - A window begins with the first use that is counted in it, and ends after the bucket's window length.
 * - Another window length is another bucket. The count of the one before is kept until its window ends, and goes on if the
 *   length comes back. A changed number of requests applies at once to what is counted already.
 * - Both buckets are judged before either is counted, so a use that one rejects costs the other nothing. Cost 0 only asks.
 */
export interface UseLimits {
  /** `shared`: counted in Redis; `memory`: in this process. */
  readonly mode: 'shared' | 'memory';
  count(buckets: UseBuckets, cost: number, options?: CountOptions): MaybePromise<Count>;
}

export interface CountOptions {
  /** What has been let in already is counted beyond a limit too, and never rejected. */
  isLetIn?: boolean;
}

/** The owner's bucket, which all keys of the partner, or of the default row, share; and a key's own. */
export type UseBuckets = readonly [owner: Bucket] | readonly [owner: Bucket, key: Bucket];

/** A key whose uses are limited. */
export interface LimitedKey {
  readonly ownerBucket: Bucket;
  readonly ownBucket: Bucket | null;
}

export function bucketsOf({ ownerBucket, ownBucket }: LimitedKey): UseBuckets {
  return ownBucket === null ? [ownerBucket] : [ownerBucket, ownBucket];
}

/** Under which a bucket's window is found. */
export function bucketName({ id, windowSeconds }: Bucket): string {
  return `${id}:${windowSeconds}`;
}

/**
 * A use that costs more than a whole window has room for is a mistake of the caller, and not a matter of waiting.
 * @throws Problem `cost_exceeds_limit`
 */
export function requireCostFits({ ownerBucket, ownBucket }: LimitedKey, cost: number): void {
  if (cost <= ownerBucket.requests && (ownBucket === null || cost <= ownBucket.requests)) return;
  const isOwners = ownBucket === null || ownerBucket.requests <= ownBucket.requests;
  const { requests: limit, windowSeconds } = isOwners ? ownerBucket : ownBucket;
  const policy = isOwners ? 'owner' : 'key';
  const sentence = limitSentence({ policy, limit, windowSeconds });
  throw new Problem('cost_exceeds_limit', `A use of cost ${cost} fits into no window. ${sentence}`, {
    members: { policy, limit, windowSeconds },
  });
}

/** What one bucket has counted. */
export interface Level {
  used: number;
  resetMs: number;
}

/** @param levels after the counting, in the buckets' order @param refusedBy the index of the bucket that refused */
export function toCount(buckets: UseBuckets, levels: readonly Level[], refusedBy: number | undefined): Count {
  const counts = buckets.map((bucket, index) => {
    const { used, resetMs } = levels[index] ?? { used: 0, resetMs: 0 };
    return {
      isExceeded: refusedBy === index,
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

/** What is known here of a bucket's window, and perhaps not in Redis. */
export interface Arrears {
  /** At least so much was counted in Redis once. */
  shared: number;
  /** Counted here while Redis could not be asked. */
  unshared: number;
  /** How long the window lasts. */
  leftMs: number;
  /** Redis could not be asked again: `unshared` is still to be added. */
  putBack(): void;
}

/** Limits that are counted in this process, and exchange what is counted with Redis. */
export interface MemoryLimits extends UseLimits {
  count(buckets: UseBuckets, cost: number, options?: CountOptions): Count;
  /** Takes over what Redis has counted in a bucket. */
  adopt(bucket: Bucket, level: Level): void;
  /**
   * What Redis has to know of a bucket before it counts there. Usually undefined: nothing.
   * @param sinceMs when Redis came back; what it has confirmed since is no news
   */
  takeArrears(bucket: Bucket, sinceMs: number): Arrears | undefined;
}

const sweepEveryMs = minuteMs;

/**
 * Counts in this process's memory. No bucket is pushed out while its window lasts; there are no more of them than owners
 * and keys with limits of their own, because only good keys are counted.
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

  function presentWindow(bucket: Bucket, now: number): Window | undefined {
    const last = bucket.window;
    if (last !== undefined && last.endsAtMs > now) return last;
    const known = windows.get(bucketName(bucket));
    if (known === undefined || known.endsAtMs <= now) return undefined;
    bucket.window = known;
    return known;
  }

  /** The bucket's window, or one that would begin now. */
  function windowOf(bucket: Bucket, now: number): Window {
    const endsAtMs = Math.floor(now) + bucket.windowSeconds * secondMs;
    return presentWindow(bucket, now) ?? { used: 0, unshared: 0, endsAtMs, sharedAtMs: 0 };
  }

  function use(bucket: Bucket, window: Window, cost: number): void {
    window.used += cost;
    if (bucket.window === window) return;
    bucket.window = window;
    windows.set(bucketName(bucket), window);
  }

  function count(buckets: UseBuckets, cost: number, { isLetIn = false }: CountOptions = {}): Count {
    const now = nowMs();
    sweep(now);
    const present = buckets.map((bucket) => ({ bucket, window: windowOf(bucket, now) }));
    const isTooMuch = ({ bucket, window }: (typeof present)[number]) => window.used + cost > bucket.requests;
    const refusing = !isLetIn && cost > 0 ? present.findIndex(isTooMuch) : -1;
    if (refusing < 0 && cost > 0) {
      for (const { bucket, window } of present) {
        use(bucket, window, cost);
        window.unshared += cost;
      }
    }
    // In whole milliseconds: fractions do not add up exactly, and a fraction too many would show as a second more.
    const levels = present.map(({ window: { used, endsAtMs } }) => ({ used, resetMs: Math.round(endsAtMs - now) }));
    return toCount(buckets, levels, refusing < 0 ? undefined : refusing);
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
    takeArrears(bucket, sinceMs) {
      const now = nowMs();
      const window = presentWindow(bucket, now);
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
