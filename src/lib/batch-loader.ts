import { LRUCache } from 'lru-cache';
import { createDeferred, type Deferred } from './deferred.ts';
import { createHealthSwitch } from './health-switch.ts';

/** Loads values by id, many in one query. */
export interface BatchLoader<Id, Value> {
  /** Loads by a query that begins after this call, shared with other calls that wait for it. Undefined: there is none. */
  load(id: Id): Promise<Value | undefined>;
  /** Whether the last query found the source unavailable. */
  isFailing(): boolean;
  /** Whether nothing is loaded now. */
  isIdle(): boolean;
}

interface BatchLoaderOptions<Id, Value> {
  /** One query for all of these ids; those that do not exist are left out. Of none: whether the source answers. */
  query: (ids: Id[]) => Promise<ReadonlyMap<Id, Value>>;
  /** Whether an error says that the source could not be reached, and nothing about the ids. */
  isUnavailable: (error: unknown) => boolean;
  /** What a call is rejected with that has waited for too long. */
  tooLate: () => Error;
  /** Called when the source becomes unavailable, and when it answers again. */
  onHealth?: ((isHealthy: boolean, cause?: unknown) => void) | undefined;
}

interface Call<Value> extends Deferred<Value | undefined> {
  /** Monotonic milliseconds. */
  sinceMs: number;
}

/** Queries at once beside one for a suspect, and ids in each: loading must leave connections to others. */
const queriesAtOnce = 2;
const idsInQuery = 200;

/**
 * A query that fails within this time has lost its connection, and is sent once more. One that takes longer may be too much
 * for a source that is well: an empty query, sent beside it, shows that.
 */
const quicklyMs = 500;

/** How long a call may wait for its query. */
const waitAtMostMs = 7_000;

/** Ids whose own query has failed are loaded by themselves for a while, so that they do not fail the batches of others. */
const suspectMs = 60_000;
const suspectsKept = 10_000;

export function createBatchLoader<Id extends string, Value>(
  options: BatchLoaderOptions<Id, Value>,
): BatchLoader<Id, Value> {
  const { query, isUnavailable, tooLate } = options;
  const health = createHealthSwitch((isHealthy, cause) => options.onHealth?.(isHealthy, cause), true);
  const waiting = new Map<Id, Call<Value>>();
  const suspects = new LRUCache<Id, true>({ max: suspectsKept, ttl: suspectMs });
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

  /** The first calls of those that are wanted. */
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
    const isQuick = () => performance.now() - startedAtMs < quicklyMs;
    let isAnswering = false;
    const beside = setTimeout(() => {
      query([]).then(
        () => {
          isAnswering = true;
        },
        () => undefined,
      );
    }, quicklyMs);
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
        // They have waited for the same silence, and would wait for it once more.
        if (!isQuick()) rejectAll(waiting, error);
      } else await failOneByOne(calls, error);
    } finally {
      clearTimeout(beside);
    }
  }

  /** The source answers, so one of these is at fault: it fails, and the others do not. */
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
