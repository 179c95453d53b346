import { LRUCache } from 'lru-cache';
import { createDeferred, type Deferred } from './deferred.ts';
import { createHealthSwitch } from './health-switch.ts';

/** Loads values by id, many in one query. */
export interface BatchLoader<Id, Value> {
  /**
   * Loads with a query that starts after this call, shared with other waiting calls. Undefined: there is no such value.
   */
  load(id: Id): Promise<Value | undefined>;
  /** Whether the source did not respond to the last query. */
  isFailing(): boolean;
  /** Whether no query is running. */
  isIdle(): boolean;
}

interface BatchLoaderOptions<Id, Value> {
  /** Reads all of these ids in one query; missing ones are left out. Without ids it checks that the source responds. */
  query: (ids: Id[]) => Promise<ReadonlyMap<Id, Value>>;
  /** Whether an error means that the source could not be reached, and says nothing about the ids. */
  isUnavailable: (error: unknown) => boolean;
  /** The error of a call that waited too long. */
  tooLate: () => Error;
  /** Called when the source stops and starts to respond. */
  onHealth?: ((isHealthy: boolean, cause?: unknown) => void) | undefined;
}

interface Call<Value> extends Deferred<Value | undefined> {
  /** Monotonic milliseconds. */
  sinceMs: number;
}

/** The maximum number of concurrent queries, and of ids in each. Loading must leave connections to others. */
const queriesAtOnce = 2;
const idsInQuery = 200;

/**
 * A query that fails within this time has lost its connection and is repeated once. A slower one may be too much for a
 * healthy source: an empty query beside it shows that.
 */
const quickFailureMs = 500;

/** How long a call may wait for its query. */
const waitAtMostMs = 7_000;

/** Ids whose query has failed are loaded alone for a while, so that they do not fail other ids' batches. */
const suspectMs = 60_000;
const maxSuspects = 10_000;

export function createBatchLoader<Id extends string, Value>(
  options: BatchLoaderOptions<Id, Value>,
): BatchLoader<Id, Value> {
  const { query, isUnavailable, tooLate } = options;
  const health = createHealthSwitch((isHealthy, cause) => options.onHealth?.(isHealthy, cause), true);
  const waiting = new Map<Id, Call<Value>>();
  const suspects = new LRUCache<Id, true>({ max: maxSuspects, ttl: suspectMs });
  let running = 0;
  let isSuspectRunning = false;
  let isScheduled = false;

  function load(id: Id): Promise<Value | undefined> {
    const shared = waiting.get(id);
    if (shared !== undefined) return shared.promise;
    const call = { ...createDeferred<Value | undefined>(), sinceMs: performance.now() };
    waiting.set(id, call);
    // Not at once, so that requests that arrive together share a query.
    if (!isScheduled) setImmediate(startQueries);
    isScheduled = true;
    return call.promise;
  }

  function startQueries(): void {
    isScheduled = false;
    while (running < queriesAtOnce) {
      const calls = take(idsInQuery, (id) => !suspects.has(id));
      if (calls.size === 0) break;
      running += 1;
      void run(calls).then(() => {
        running -= 1;
        startQueries();
      });
    }
    if (isSuspectRunning) return;
    const calls = take(1, (id) => suspects.has(id));
    if (calls.size === 0) return;
    isSuspectRunning = true;
    void run(calls).then(() => {
      isSuspectRunning = false;
      startQueries();
    });
  }

  /** The first waiting calls. */
  function take(most: number, isWanted: (id: Id) => boolean): Map<Id, Call<Value>> {
    const taken = new Map<Id, Call<Value>>();
    for (const [id, call] of waiting) {
      if (taken.size === most) break;
      if (isTooLate(call)) call.reject(tooLate());
      else if (isWanted(id)) taken.set(id, call);
      else continue;
      waiting.delete(id);
    }
    return taken;
  }

  function isTooLate({ sinceMs }: Call<Value>): boolean {
    return performance.now() - sinceMs > waitAtMostMs;
  }

  /** Settles these calls. Never rejects. */
  async function run(calls: ReadonlyMap<Id, Call<Value>>): Promise<void> {
    const startedAtMs = performance.now();
    const isQuick = () => performance.now() - startedAtMs < quickFailureMs;
    let isAnswering = false;
    const beside = setTimeout(() => {
      query([]).then(
        () => {
          isAnswering = true;
        },
        () => undefined,
      );
    }, quickFailureMs);
    try {
      const ids = [...calls.keys()];
      const found = await query(ids).catch((error: unknown) => {
        if (isUnavailable(error) && isQuick()) return query(ids);
        throw error;
      });
      health.set(true);
      for (const [id, call] of calls) {
        suspects.delete(id);
        call.resolve(found.get(id));
      }
    } catch (error) {
      const isDown = isUnavailable(error) && !isAnswering;
      health.set(!isDown, error);
      if (isDown) {
        rejectAll(calls, error);
        // These calls have already waited for the source, and would wait again.
        if (!isQuick()) rejectAll(waiting, error);
      } else await failOneByOne(calls, error);
    } finally {
      clearTimeout(beside);
    }
  }

  /** The source responds, so one of these ids causes the error. It alone fails. */
  async function failOneByOne(calls: ReadonlyMap<Id, Call<Value>>, error: unknown): Promise<void> {
    for (const [id, call] of calls) {
      if (calls.size === 1) {
        suspects.set(id, true);
        call.reject(error);
      } else if (isTooLate(call) || isFailing()) call.reject(tooLate());
      else await run(new Map([[id, call]]));
    }
  }

  function rejectAll(calls: ReadonlyMap<Id, Call<Value>>, error: unknown): void {
    for (const call of calls.values()) call.reject(error);
    if (calls === waiting) waiting.clear();
  }

  function isFailing(): boolean {
    return health.isHealthy === false;
  }

  return {
    load,
    isFailing,
    isIdle: () => waiting.size === 0 && running === 0 && !isSuspectRunning,
  };
}
