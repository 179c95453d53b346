import type { ApiKeyRecord } from '../auth/api-key-record.ts';
import type { Bucket, Window } from '../core/use-bucket.ts';

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
 * Counts uses of keys in windows that begin with their first use. Both buckets are looked at before either is counted,
 * so a use that one of them refuses costs the other nothing. A use of cost 0 is looked at only.
 */
export interface UseLimits {
  /** `shared`: counted in Redis; `memory`: in this process. */
  readonly mode: 'shared' | 'memory';
  count(buckets: UseBuckets, cost: number): Count | Promise<Count>;
  /** Counts what has been let in already, past a limit too. Nothing is refused. */
  add(buckets: UseBuckets, cost: number): Count | Promise<Count>;
}

/** The owner's bucket, which all keys of the partner, or of the default row, share; and a key's own besides. */
export type UseBuckets = readonly [owner: Bucket] | readonly [owner: Bucket, key: Bucket];

export function bucketsOf({ ownerBucket, ownBucket }: ApiKeyRecord): UseBuckets {
  return ownBucket === null ? [ownerBucket] : [ownerBucket, ownBucket];
}

/** A bucket of another window is another bucket, so a changed limit acts at once. */
export function bucketName({ id, windowSeconds }: Bucket): string {
  return `${id}:${windowSeconds}`;
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
      resetSeconds: Math.max(1, Math.ceil(resetMs / 1000)),
      policy: index === 0 ? ('owner' as const) : ('key' as const),
    };
  });
  const [owner, key] = counts;
  if (owner === undefined) throw new Error('a use is counted against at least one bucket');
  if (key === undefined || owner.isExceeded) return owner;
  return key.isExceeded || key.remaining <= owner.remaining ? key : owner;
}

/** Limits that are counted in this process, and may go on from where another counter has stopped. */
export interface MemoryLimits extends UseLimits {
  count(buckets: UseBuckets, cost: number): Count;
  add(buckets: UseBuckets, cost: number): Count;
  /** Takes over what another counter has told of a bucket. */
  adopt(bucket: Bucket, level: Level): void;
}

const sweepEveryMs = 60_000;

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

  /** The bucket's window, or one that would begin now. */
  function windowOf(bucket: Bucket, now: number): Window {
    const { id, windowSeconds, window: last } = bucket;
    if (last !== undefined && last.endsAtMs > now) return last;
    const known = windows.get(id);
    if (known === undefined || known.endsAtMs <= now || known.windowSeconds !== windowSeconds) {
      return { windowSeconds, used: 0, endsAtMs: Math.floor(now) + windowSeconds * 1000 };
    }
    bucket.window = known;
    return known;
  }

  function use(bucket: Bucket, window: Window, cost: number): void {
    window.used += cost;
    if (bucket.window === window) return;
    bucket.window = window;
    windows.set(bucket.id, window);
  }

  function countUnless(buckets: UseBuckets, cost: number, mayRefuse: boolean): Count {
    const now = nowMs();
    sweep(now);
    const present = buckets.map((bucket) => ({ bucket, window: windowOf(bucket, now) }));
    const isTooMuch = ({ bucket, window }: (typeof present)[number]) => window.used + cost > bucket.requests;
    const refusing = mayRefuse && cost > 0 ? present.findIndex(isTooMuch) : -1;
    if (refusing < 0 && cost > 0) for (const { bucket, window } of present) use(bucket, window, cost);
    // In whole milliseconds: fractions do not add up exactly, and a fraction too many would show as a second more.
    const levels = present.map(({ window: { used, endsAtMs } }) => ({ used, resetMs: Math.round(endsAtMs - now) }));
    return toCount(buckets, levels, refusing < 0 ? undefined : refusing);
  }

  return {
    mode: 'memory',
    count: (buckets, cost) => countUnless(buckets, cost, true),
    add: (buckets, cost) => countUnless(buckets, cost, false),
    adopt(bucket, { used, resetMs }) {
      const now = nowMs();
      sweep(now);
      if (used === 0) return;
      const window = windowOf(bucket, now);
      use(bucket, window, used - window.used);
      window.endsAtMs = Math.floor(now) + resetMs;
    },
  };
}
