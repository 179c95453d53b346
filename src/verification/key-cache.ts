import { LRUCache } from 'lru-cache';
import type { ChangeFeed } from '../database/change-feed.ts';
import { isUnavailable } from '../database/pg-error.ts';
import { Problem } from '../domain/errors.ts';
import { type BatchLoader, createBatchLoader } from '../lib/batch-loader.ts';
import type { MaybePromise } from '../lib/maybe-promise.ts';

/*
 * Why a reload that races an invalidation cannot leave a stale record.
 *
 * Every change invalidates the ids that it touches after it is committed: at once where this process made it, through the
 * change feed where another one did. So a query either begins after the invalidation, and sees the change; or it is running
 * when the invalidation comes. Each running query has a set in which every invalidation is noted. When the query ends, a record
 * is kept only if the set names neither the record nor anything it depends on. Between that check and the keeping nothing
 * else can run, and what is invalidated later finds the record in the cache and removes it.
 *
 * Those who wait for such an outdated result read once more, so that a slow query does not answer after a change with what
 * was before. They do so only once: under a flood of invalidations each request still ends.
 *
 * A request joins a read in progress only if nothing was invalidated since that read began: then its result is as right as a
 * kept record. Any invalidation makes later requests begin reads of their own.
 *
 * While the feed is not live, invalidations may be missing. Then requests neither use what is kept, while the database answers,
 * nor join a read. Before the feed is live again it calls `restarted`, which empties the cache and marks the results of all
 * running queries as outdated.
 */

/** What a record must have so that it can be kept. */
export interface CachedRecord<Id extends string> {
  readonly id: Id;
  /** When the query was sent that read it; monotonic milliseconds. */
  readonly readAtMs: number;
}

export interface KeyCacheOptions<Id extends string, Found extends CachedRecord<Id>> {
  /** One query for all of them; those that do not exist are left out. Of none: whether the database answers. */
  load: (ids: Id[]) => Promise<Found[]>;
  /** Other records that went into this one: a change of theirs invalidates it too. */
  dependsOn: (found: Found) => ReadonlyArray<string | null>;
  /** Records kept at most; the least recently used one makes room. */
  capacity: number;
  /** How long a record that was last known to be right is used while the database does not answer. 0: not at all. */
  staleMs: number;
  feed: Pick<ChangeFeed, 'isLive' | 'caughtUpAtMs' | 'subscribe'>;
  /** Called when reading begins to fail, and when it works again. */
  onHealth?: (isHealthy: boolean, cause?: unknown) => void;
}

/** How lookups have ended since the start. */
export interface CacheLookups {
  hit: number;
  /** It was read. */
  miss: number;
  /** Known not to exist. */
  unknown: number;
  /** In memory, and used although it could not be read again. */
  stale: number;
}

/** Ids that do not exist are remembered shortly, so that asking again and again does not keep the database busy. */
const unknownKeptMs = 1_000;
const unknownKept = 10_000;

/** What was invalidated while a query ran. */
interface Invalidated {
  ids: Set<string>;
  everything: boolean;
}

/** What a query has found. */
interface Reading<Found> {
  found: Found | undefined;
  /** Whether it was invalidated while it was read. */
  isOutdated: boolean;
}

/** Records of credentials by id: from memory where that is sure to be right, otherwise from the database. */
export class KeyCache<Id extends string, Found extends CachedRecord<Id>> {
  readonly lookups: CacheLookups = { hit: 0, miss: 0, unknown: 0, stale: 0 };
  readonly #options: KeyCacheOptions<Id, Found>;
  readonly #loader: BatchLoader<Id, Reading<Found>>;
  readonly #records: LRUCache<Id, Found>;
  /** With its default resolution lru-cache starts a timer at each lookup, and an unknown id takes measurably longer. */
  readonly #unknown = new LRUCache<Id, true>({ max: unknownKept, ttl: unknownKeptMs, ttlResolution: 0 });
  /** The ids of the records that depend on a partner or an organization. */
  readonly #dependents = new Map<string, Set<Id>>();
  /** Reads in progress that later requests may join. */
  readonly #reads = new Map<Id, Promise<Found | undefined>>();
  /** One for each running query. */
  readonly #running = new Set<Invalidated>();

  constructor(options: KeyCacheOptions<Id, Found>) {
    this.#options = options;
    this.#records = new LRUCache({ max: options.capacity, dispose: (found) => this.#unlink(found) });
    this.#loader = createBatchLoader({
      query: (ids) => this.#query(ids),
      isUnavailable,
      tooLate: () => new Problem('unavailable', 'The database took too long for other records.'),
      onHealth: options.onHealth,
    });
    options.feed.subscribe({ changed: (id) => this.invalidate(id), restarted: () => this.#invalidateAll() });
  }

  /** Records in memory. */
  get size(): number {
    return this.#records.size;
  }

  /** The record, where it is in memory and sure to be right. Nothing is read. */
  getFromMemory(id: Id): Found | undefined {
    const kept = this.#options.feed.isLive() ? this.#records.get(id) : undefined;
    if (kept !== undefined) this.lookups.hit += 1;
    return kept;
  }

  /**
   * At once where the record is in memory, otherwise after one query that many share.
   * @param fresh read it from the database, whatever is in memory
   * @throws Problem `unavailable`, or what the database says, where it does not answer and memory is too old
   */
  get(id: Id, fresh = false): MaybePromise<Found | undefined> {
    if (fresh) return this.#read(id, true);
    const kept = this.getFromMemory(id);
    if (kept !== undefined) return kept;
    if (this.#unknown.has(id) && this.#options.feed.isLive()) {
      this.lookups.unknown += 1;
      return undefined;
    }
    return (
      this.#getStale(id) ??
      this.#read(id, !this.#options.feed.isLive()).catch((error: unknown) => this.#staleOr(error, id))
    );
  }

  /** Removes what depends on this id. What is being read of it right now is read again. */
  invalidate(id: string): void {
    for (const { ids } of this.#running) ids.add(id);
    this.#reads.clear();
    this.#unknown.delete(id as Id);
    this.#records.delete(id as Id);
    for (const dependent of [...(this.#dependents.get(id) ?? [])]) this.#records.delete(dependent);
  }

  #invalidateAll(): void {
    for (const invalidated of this.#running) invalidated.everything = true;
    this.#reads.clear();
    if (this.#unknown.size > 0) this.#unknown.clear();
    this.#dependents.clear();
    if (this.#records.size > 0) this.#records.clear();
  }

  /** @param fresh by a query that begins after this call */
  #read(id: Id, fresh: boolean): Promise<Found | undefined> {
    this.lookups.miss += 1;
    const shared = fresh ? undefined : this.#reads.get(id);
    if (shared !== undefined) return shared;
    const read = this.#load(id).finally(() => {
      if (this.#reads.get(id) === read) this.#reads.delete(id);
    });
    this.#reads.set(id, read);
    return read;
  }

  async #load(id: Id): Promise<Found | undefined> {
    const first = await this.#loader.load(id);
    const reading = first?.isOutdated ? await this.#loader.load(id) : first;
    return reading?.found;
  }

  async #query(ids: Id[]): Promise<Map<Id, Reading<Found>>> {
    const invalidated: Invalidated = { ids: new Set(), everything: false };
    this.#running.add(invalidated);
    try {
      const records = new Map((await this.#options.load(ids)).map((found) => [found.id, found]));
      const readings = new Map<Id, Reading<Found>>();
      for (const id of ids) {
        const found = records.get(id);
        const isOutdated = this.#isOutdated(id, found, invalidated);
        if (!isOutdated) this.#keep(id, found);
        readings.set(id, { found, isOutdated });
      }
      return readings;
    } finally {
      this.#running.delete(invalidated);
    }
  }

  #isOutdated(id: Id, found: Found | undefined, { ids, everything }: Invalidated): boolean {
    if (everything || ids.has(id)) return true;
    return found !== undefined && this.#options.dependsOn(found).some((other) => other !== null && ids.has(other));
  }

  #keep(id: Id, found: Found | undefined): void {
    if (found === undefined) {
      this.#records.delete(id);
      this.#unknown.set(id, true);
      return;
    }
    this.#unknown.delete(id);
    this.#records.set(id, found);
    this.#link(found);
  }

  #link(found: Found): void {
    for (const other of this.#options.dependsOn(found)) {
      if (other === null) continue;
      const ids = this.#dependents.get(other);
      if (ids === undefined) this.#dependents.set(other, new Set([found.id]));
      else ids.add(found.id);
    }
  }

  #unlink(found: Found): void {
    for (const other of this.#options.dependsOn(found)) {
      if (other === null) continue;
      const ids = this.#dependents.get(other);
      ids?.delete(found.id);
      if (ids?.size === 0) this.#dependents.delete(other);
    }
  }

  /** After one failed read, known records do not wait for the database. One read at a time asks whether it is back. */
  #getStale(id: Id): Found | undefined {
    if (!this.#loader.isFailing()) return undefined;
    const kept = this.#soundCopy(id);
    if (kept === undefined) return undefined;
    if (this.#loader.isIdle()) void this.#loader.load(id).catch(() => undefined);
    this.lookups.stale += 1;
    return kept;
  }

  #staleOr(error: unknown, id: Id): Found {
    // Looked up again: the copy of before may have been invalidated meanwhile.
    const kept = this.#soundCopy(id);
    if (kept === undefined || !isUnavailable(error)) throw error;
    this.lookups.stale += 1;
    return kept;
  }

  /** A copy that was known to be right not too long ago. */
  #soundCopy(id: Id): Found | undefined {
    const { feed, staleMs } = this.#options;
    const kept = this.#records.get(id);
    if (kept === undefined) return undefined;
    return performance.now() - Math.max(kept.readAtMs, feed.caughtUpAtMs) < staleMs ? kept : undefined;
  }
}
