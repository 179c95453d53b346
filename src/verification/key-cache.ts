import { LRUCache } from 'lru-cache';
import { Problem } from '../core/errors.ts';
import type { Fingerprint } from '../core/fingerprints.ts';
import { type KeptRecord, KeptRecords } from '../core/kept-records.ts';
import type { ChangeFeed } from '../db/change-feed.ts';
import { isUnavailable } from '../db/pg-error.ts';

/** Records by id, from memory where that is sure to be right, else from the database. */
export interface RecordCache<Id extends string, Found> {
  /**
   * At once where the record is in memory, else after one query that many may share.
   * @param fresh read it from the database, whatever is in memory
   * @throws Problem `unavailable` where the database does not answer and memory is too old
   */
  get(id: Id, fresh?: boolean): Found | undefined | Promise<Found | undefined>;
  /** Lets what was given by `get` be recalled by a fingerprint. */
  setFingerprint(found: Found, fingerprint: Fingerprint): void;
  /** What has this fingerprint, where it is in memory and sure to be right. Nothing is read. */
  recall(fingerprint: Fingerprint): Found | undefined;
  /** How lookups have ended since the start. */
  readonly lookups: Readonly<CacheLookups>;
  /** Records in memory. */
  size(): number;
  /** Forgets whatever depends on this id, and what is being read of it right now is read again. */
  invalidate(id: string): void;
}

export interface CacheLookups {
  hit: number;
  /** It was read, or shared what somebody else was reading. */
  miss: number;
  /** Known not to exist. */
  unknown: number;
  /** In memory and used although it could not be read anew. */
  stale: number;
}

export interface RecordCacheOptions<Id extends string, Found extends KeptRecord & { id: Id }> {
  /** One query for all of them; those that do not exist are left out. Of none: whether the database answers. */
  load: (ids: Id[]) => Promise<Found[]>;
  /** Other records that went into this one: a change of theirs makes it stale too. */
  dependsOn: (found: Found) => ReadonlyArray<string | null>;
  /** Records kept at most; one that has not been used for long makes room. */
  capacity: number;
  /** How long a record that was last known to be right is used while the database does not answer. 0: not at all. */
  staleMs: number;
  feed: ChangeFeed;
  /** Told when reading begins to fail, and when it works again. */
  onTurn?: (isFailing: boolean, cause?: unknown) => void;
}

interface Wish<Id, Found> {
  id: Id;
  promise: Promise<Found | undefined>;
  resolve: (found: Found | undefined) => void;
  reject: (error: unknown) => void;
  /** When the batch in which it was to be read has failed; monotonic milliseconds. */
  failedAtMs: number | undefined;
  /** Whether it was read already, and was changed while it was read. */
  isRepeated: boolean;
}

interface Batch {
  /** What was changed while the query ran: its result may be from before. */
  changed: Set<string>;
  restarted: boolean;
}

/** Queries at once, and ids in one of them: verification must not take the pool away from everybody else. */
const batchesAtOnce = 2;
const idsInBatch = 200;

/**
 * A failure after less than this is a lost connection, and another one may work. After more, either the database is silent
 * or this batch is too much for it: a query for nothing, sent meanwhile, says which.
 */
const quicklyMs = 500;

/** Ids with which a query has failed although the database answers. They are read one by one, beside the batches. */
const suspectMs = 60_000;
const suspectsKept = 10_000;

/** How long an id whose batch has failed waits for its own query. */
const aloneWithinMs = 5_000;

/** Ids that do not exist are remembered shortly, so that asking again and again costs one query, not a flood. */
const unknownKeptMs = 1_000;
const unknownKept = 10_000;

export function createRecordCache<Id extends string, Found extends KeptRecord & { id: Id }>(
  options: RecordCacheOptions<Id, Found>,
): RecordCache<Id, Found> {
  const { feed, dependsOn } = options;
  const dependents = new Map<string, Set<Id>>();
  const records = new KeptRecords<Id, Found>(options.capacity, unlink);
  const unknown = new LRUCache<Id, true>({ max: unknownKept, ttl: unknownKeptMs });
  const waiting = new Map<Id, Wish<Id, Found>>();
  /** Read one by one, because the batch with them has failed. */
  const waitingAlone = new Map<Id, Wish<Id, Found>>();
  const running = new Map<Id, Wish<Id, Found>>();
  const suspects = new LRUCache<Id, true>({ max: suspectsKept, ttl: suspectMs });
  const batches = new Set<Batch>();
  let together = 0;
  let isOneAlone = false;
  const lookups: CacheLookups = { hit: 0, miss: 0, unknown: 0, stale: 0 };
  let isFailing = false;
  let probe: Promise<void> | undefined;

  feed.subscribe({
    changed: invalidate,
    restarted() {
      records.clear();
      dependents.clear();
      if (unknown.size > 0) unknown.clear();
      for (const batch of batches) batch.restarted = true;
    },
  });

  function link(found: Found): void {
    const { id } = found;
    for (const other of dependsOn(found)) {
      if (other === null) continue;
      const ids = dependents.get(other);
      if (ids === undefined) dependents.set(other, new Set([id]));
      else ids.add(id);
    }
  }

  function unlink(found: Found): void {
    const { id } = found;
    for (const other of dependsOn(found)) {
      if (other === null) continue;
      const ids = dependents.get(other);
      ids?.delete(id);
      if (ids?.size === 0) dependents.delete(other);
    }
  }

  function invalidate(id: string): void {
    for (const batch of batches) batch.changed.add(id);
    unknown.delete(id as Id);
    records.delete(id as Id);
    for (const dependent of [...(dependents.get(id) ?? [])]) records.delete(dependent);
  }

  function get(id: Id, fresh = false): Found | undefined | Promise<Found | undefined> {
    if (fresh) {
      lookups.miss += 1;
      return read(id, true);
    }
    const kept = records.get(id);
    if (kept !== undefined && feed.isLive()) {
      lookups.hit += 1;
      return kept;
    }
    if (kept === undefined && unknown.has(id)) {
      lookups.unknown += 1;
      return undefined;
    }
    if (isFailing) return getWhileFailing(id, kept);
    lookups.miss += 1;
    // While the feed is down, a query that began before this request could be from before a change it must see.
    return read(id, !feed.isLive()).catch((error: unknown) => staleOr(error, id));
  }

  function recall(fingerprint: Fingerprint): Found | undefined {
    const kept = records.getByFingerprint(fingerprint);
    if (kept === undefined || !feed.isLive()) return undefined;
    lookups.hit += 1;
    return kept;
  }

  function isSound({ loadedAtMs }: Found): boolean {
    return performance.now() - Math.max(loadedAtMs, feed.caughtUpAtMs) < options.staleMs;
  }

  function staleOr(error: unknown, id: Id): Found {
    const kept = records.get(id);
    if (!isUnavailable(error) || kept === undefined || !isSound(kept)) throw error;
    lookups.stale += 1;
    return kept;
  }

  /** After one failed read nobody waits for the database who need not, and one probe at a time asks it. */
  function getWhileFailing(id: Id, kept: Found | undefined): Found | Promise<Found | undefined> {
    probe ??= read(id, true)
      .then(
        () => undefined,
        () => undefined,
      )
      .finally(() => {
        probe = undefined;
      });
    if (kept !== undefined && isSound(kept)) {
      lookups.stale += 1;
      return kept;
    }
    return probe.then(() => {
      if (!isFailing) return get(id);
      throw new Problem(
        'unavailable',
        'The last read of the database failed, and there is no copy of this record that may be used without it.',
      );
    });
  }

  /** @param fresh the query must begin after this call */
  function read(id: Id, fresh: boolean): Promise<Found | undefined> {
    const shared = waiting.get(id) ?? waitingAlone.get(id) ?? (fresh || isAnyStale() ? undefined : running.get(id));
    if (shared !== undefined) return shared.promise;
    const { promise, resolve, reject } = withResolvers<Found | undefined>();
    const wish = { id, promise, resolve, reject, failedAtMs: undefined, isRepeated: false };
    queueOf(wish).set(id, wish);
    if (waiting.size + waitingAlone.size === 1) setImmediate(startBatches);
    return wish.promise;
  }

  function queueOf({ id, failedAtMs }: Wish<Id, Found>): Map<Id, Wish<Id, Found>> {
    return failedAtMs !== undefined || suspects.has(id) ? waitingAlone : waiting;
  }

  /** Whether what is being read may be from before a change that is known by now: then later requests do not share it. */
  function isAnyStale(): boolean {
    for (const { restarted, changed } of batches) if (restarted || changed.size > 0) return true;
    return false;
  }

  /** Reads once more, together with somebody who asks for the same since. */
  function enqueueAgain(wish: Wish<Id, Found>): void {
    const later = waiting.get(wish.id) ?? waitingAlone.get(wish.id);
    if (later === undefined) queueOf(wish).set(wish.id, wish);
    else later.promise.then(wish.resolve, wish.reject);
  }

  function startBatches(): void {
    while (waiting.size > 0 && together < batchesAtOnce) void runTogether();
    if (waitingAlone.size > 0 && !isOneAlone) void runAlone();
  }

  async function runTogether(): Promise<void> {
    together += 1;
    const wishes = [...waiting.values()].slice(0, idsInBatch);
    for (const { id } of wishes) waiting.delete(id);
    await runBatch(wishes);
    together -= 1;
    startBatches();
  }

  async function runAlone(): Promise<void> {
    const wish = takeOneAlone();
    if (wish === undefined) return;
    isOneAlone = true;
    await runBatch([wish]);
    isOneAlone = false;
    startBatches();
  }

  /** Suspects come last. What has waited for too long is rejected. */
  function takeOneAlone(): Wish<Id, Found> | undefined {
    const oldestMs = performance.now() - aloneWithinMs;
    for (const { id, failedAtMs, reject } of waitingAlone.values()) {
      if (failedAtMs === undefined || failedAtMs >= oldestMs) continue;
      waitingAlone.delete(id);
      reject(new Problem('unavailable', 'The database took too long for other records.'));
    }
    const left = [...waitingAlone.values()];
    const wish = left.find(({ id }) => !suspects.has(id)) ?? left[0];
    if (wish !== undefined) waitingAlone.delete(wish.id);
    return wish;
  }

  async function runBatch(wishes: ReadonlyArray<Wish<Id, Found>>): Promise<void> {
    const batch: Batch = { changed: new Set(), restarted: false };
    batches.add(batch);
    for (const wish of wishes) running.set(wish.id, wish);
    const startedAtMs = performance.now();
    const failedQuickly = () => performance.now() - startedAtMs < quicklyMs;
    let isAnswering = false;
    const control = setTimeout(() => {
      options.load([]).then(
        () => {
          isAnswering = true;
        },
        () => undefined,
      );
    }, quicklyMs);
    try {
      const ids = wishes.map(({ id }) => id);
      const records = await options.load(ids).catch((error: unknown) => {
        if (isUnavailable(error) && failedQuickly()) return options.load(ids);
        throw error;
      });
      const byId = new Map(records.map((found) => [found.id, found]));
      turn(false);
      for (const wish of wishes) {
        suspects.delete(wish.id);
        settle(wish, byId.get(wish.id), batch);
      }
    } catch (error) {
      if (isUnavailable(error) && !isAnswering) {
        for (const wish of wishes) wish.reject(error);
        turn(true, error);
        if (!failedQuickly()) rejectWaiting(error);
      } else {
        turn(false);
        failOneByOne(wishes, error);
      }
    } finally {
      clearTimeout(control);
      batches.delete(batch);
      for (const wish of wishes) if (running.get(wish.id) === wish) running.delete(wish.id);
    }
  }

  /** The database answers, so one of these is the cause: it fails, and the others do not. */
  function failOneByOne(wishes: ReadonlyArray<Wish<Id, Found>>, error: unknown): void {
    const [first, ...others] = wishes;
    if (first !== undefined && others.length === 0) {
      suspects.set(first.id, true);
      first.reject(error);
      return;
    }
    const failedAtMs = performance.now();
    for (const wish of wishes) enqueueAgain(Object.assign(wish, { failedAtMs }));
  }

  /** They have waited for the same silence, and would wait for it once more. */
  function rejectWaiting(error: unknown): void {
    for (const queue of [waiting, waitingAlone]) {
      for (const wish of queue.values()) wish.reject(error);
      queue.clear();
    }
  }

  function settle(wish: Wish<Id, Found>, found: Found | undefined, batch: Batch): void {
    const { id } = wish;
    const isStale =
      batch.restarted ||
      batch.changed.has(id) ||
      (found !== undefined && dependsOn(found).some((other) => other !== null && batch.changed.has(other)));
    if (isStale && wish.isRepeated) {
      // It was read after it was asked for, so it is a right reply. It is not kept, and a flood of notices ends here.
      wish.resolve(found);
      return;
    }
    if (isStale) {
      wish.isRepeated = true;
      enqueueAgain(wish);
      return;
    }
    if (found === undefined) {
      records.delete(id);
      unknown.set(id, true);
    } else {
      unknown.delete(id);
      records.add(found);
      link(found);
    }
    wish.resolve(found);
  }

  function turn(failing: boolean, cause?: unknown): void {
    if (failing === isFailing) return;
    isFailing = failing;
    options.onTurn?.(failing, cause);
  }

  return {
    get,
    setFingerprint: (found, fingerprint) => records.setFingerprint(found, fingerprint),
    recall,
    invalidate,
    lookups,
    size: () => records.size,
  };
}

/** `Promise.withResolvers()`, which Node 20 does not have. */
function withResolvers<Value>() {
  let resolve: (value: Value) => void = () => undefined;
  let reject: (error: unknown) => void = () => undefined;
  const promise = new Promise<Value>((resolve_, reject_) => {
    resolve = resolve_;
    reject = reject_;
  });
  return { promise, resolve, reject };
}
