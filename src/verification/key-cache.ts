import { LRUCache } from 'lru-cache';
import type { ChangeFeed } from '../database/change-feed.ts';
import { isUnavailable } from '../database/pg-error.ts';
import { Problem } from '../domain/errors.ts';
import { type BatchLoader, createBatchLoader } from '../lib/batch-loader.ts';
import type { MaybePromise } from '../lib/maybe-promise.ts';

/*
 * A load that races an invalidation must not leave a stale record:
 *
 * - A change invalidates its ids after its commit: directly in the process that made it, through the change feed elsewhere.
 * - Each running query collects the ids that are invalidated meanwhile. Its result is cached only if neither the record nor
 *   a record that it depends on is among them. A request that waited for an outdated result loads once more, and only once.
 * - A request joins a running load only if nothing was invalidated since that load began.
 * - While the feed is not live, invalidations may be missing: requests neither use the cache, if the database answers, nor
 *   join a load. Before the feed is live again, `restarted` empties the cache and outdates all running queries.
 */

/** A record that the cache can store. */
export interface CachedRecord<Id extends string> {
  readonly id: Id;
  /** When the query for the record was sent; monotonic milliseconds. */
  readonly readAtMs: number;
}

export interface KeyCacheOptions<Id extends string, Entry extends CachedRecord<Id>> {
  /** Loads all ids in one query and leaves out unknown ones. An empty list only probes the database. */
  load: (ids: Id[]) => Promise<Entry[]>;
  /** Ids of other records whose change invalidates this one too. */
  dependsOn: (entry: Entry) => ReadonlyArray<string | null>;
  /** The maximum number of records; beyond it the least recently used one is evicted. */
  capacity: number;
  /** How long a cached record may be used while the database does not answer. 0: not at all. */
  staleMs: number;
  feed: Pick<ChangeFeed, 'isLive' | 'caughtUpAtMs' | 'subscribe'>;
  /** Called when loading begins to fail, and when it works again. */
  onHealth?: (isHealthy: boolean, cause?: unknown) => void;
}

/** Numbers of lookups by result, since the start. */
export interface CacheLookups {
  hit: number;
  /** Loaded from the database. */
  miss: number;
  /** The cache remembered that the id does not exist. */
  unknown: number;
  /** Answered from memory because the database did not answer. */
  stale: number;
}

/** Unknown ids are remembered for a short time, so that repeated lookups do not load the database. */
const unknownIdTtlMs = 1_000;
const unknownIdsCapacity = 10_000;

/** The ids that were invalidated while a query ran. */
interface Invalidated {
  ids: Set<string>;
  everything: boolean;
}

/** The result of a query for one id. */
interface LoadedEntry<Entry> {
  entry: Entry | undefined;
  /** Whether the record was invalidated while the query ran. */
  isOutdated: boolean;
}

/** Caches records of credentials by id; loads them from the database if the cache may be out of date. */
export class KeyCache<Id extends string, Entry extends CachedRecord<Id>> {
  readonly lookups: CacheLookups = { hit: 0, miss: 0, unknown: 0, stale: 0 };
  readonly #options: KeyCacheOptions<Id, Entry>;
  readonly #loader: BatchLoader<Id, LoadedEntry<Entry>>;
  readonly #records: LRUCache<Id, Entry>;
  /** `ttlResolution: 0`, because with its default lru-cache starts a timer at each lookup. */
  readonly #unknown = new LRUCache<Id, true>({ max: unknownIdsCapacity, ttl: unknownIdTtlMs, ttlResolution: 0 });
  /** The ids of the records that depend on a partner or an organization. */
  readonly #dependents = new Map<string, Set<Id>>();
  /** Running loads that later requests may join. */
  readonly #reads = new Map<Id, Promise<Entry | undefined>>();
  /** One for each running query. */
  readonly #running = new Set<Invalidated>();

  constructor(options: KeyCacheOptions<Id, Entry>) {
    this.#options = options;
    this.#records = new LRUCache({ max: options.capacity, dispose: (entry) => this.#unlink(entry) });
    this.#loader = createBatchLoader({
      query: (ids) => this.#query(ids),
      isUnavailable,
      tooLate: () => new Problem('unavailable', 'The database took too long for other records.'),
      onHealth: options.onHealth,
    });
    options.feed.subscribe({ changed: (id) => this.invalidate(id), restarted: () => this.#invalidateAll() });
  }

  /** The number of cached records. */
  get size(): number {
    return this.#records.size;
  }

  /** The cached record if it is current; never reads from the database. */
  getFromMemory(id: Id): Entry | undefined {
    const cached = this.#options.feed.isLive() ? this.#records.get(id) : undefined;
    if (cached !== undefined) this.lookups.hit += 1;
    return cached;
  }

  /**
   * Returns the cached record, or loads it in a query shared with other requests.
   * @param fresh always read from the database
   * @throws Problem `unavailable`, or the database's error, if the database does not answer and the cached copy is too old
   */
  get(id: Id, fresh = false): MaybePromise<Entry | undefined> {
    if (fresh) return this.#read(id, true);
    const cached = this.getFromMemory(id);
    if (cached !== undefined) return cached;
    if (this.#unknown.has(id) && this.#options.feed.isLive()) {
      this.lookups.unknown += 1;
      return undefined;
    }
    return (
      this.#getStale(id) ??
      this.#read(id, !this.#options.feed.isLive()).catch((error: unknown) => this.#staleOr(error, id))
    );
  }

  /** Removes the record and those that depend on it, and outdates running queries for them. */
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

  /** @param fresh start a query now, even if another one is running */
  #read(id: Id, fresh: boolean): Promise<Entry | undefined> {
    this.lookups.miss += 1;
    const shared = fresh ? undefined : this.#reads.get(id);
    if (shared !== undefined) return shared;
    const read = this.#load(id).finally(() => {
      if (this.#reads.get(id) === read) this.#reads.delete(id);
    });
    this.#reads.set(id, read);
    return read;
  }

  async #load(id: Id): Promise<Entry | undefined> {
    const first = await this.#loader.load(id);
    const loaded = first?.isOutdated ? await this.#loader.load(id) : first;
    return loaded?.entry;
  }

  async #query(ids: Id[]): Promise<Map<Id, LoadedEntry<Entry>>> {
    const invalidated: Invalidated = { ids: new Set(), everything: false };
    this.#running.add(invalidated);
    try {
      const records = new Map((await this.#options.load(ids)).map((entry) => [entry.id, entry]));
      const loaded = new Map<Id, LoadedEntry<Entry>>();
      for (const id of ids) {
        const entry = records.get(id);
        const isOutdated = this.#isOutdated(id, entry, invalidated);
        if (!isOutdated) this.#store(id, entry);
        loaded.set(id, { entry, isOutdated });
      }
      return loaded;
    } finally {
      this.#running.delete(invalidated);
    }
  }

  #isOutdated(id: Id, entry: Entry | undefined, { ids, everything }: Invalidated): boolean {
    if (everything || ids.has(id)) return true;
    return entry !== undefined && this.#options.dependsOn(entry).some((other) => other !== null && ids.has(other));
  }

  #store(id: Id, entry: Entry | undefined): void {
    if (entry === undefined) {
      this.#records.delete(id);
      this.#unknown.set(id, true);
      return;
    }
    this.#unknown.delete(id);
    this.#records.set(id, entry);
    this.#link(entry);
  }

  #link(entry: Entry): void {
    for (const other of this.#options.dependsOn(entry)) {
      if (other === null) continue;
      const ids = this.#dependents.get(other);
      if (ids === undefined) this.#dependents.set(other, new Set([entry.id]));
      else ids.add(entry.id);
    }
  }

  #unlink(entry: Entry): void {
    for (const other of this.#options.dependsOn(entry)) {
      if (other === null) continue;
      const ids = this.#dependents.get(other);
      ids?.delete(entry.id);
      if (ids?.size === 0) this.#dependents.delete(other);
    }
  }

  /** While loading fails, cached records do not wait for the database; one load at a time probes whether it is back. */
  #getStale(id: Id): Entry | undefined {
    if (!this.#loader.isFailing()) return undefined;
    const cached = this.#usableCopy(id);
    if (cached === undefined) return undefined;
    if (this.#loader.isIdle()) void this.#loader.load(id).catch(() => undefined);
    this.lookups.stale += 1;
    return cached;
  }

  #staleOr(error: unknown, id: Id): Entry {
    // Looks the copy up again: it may have been invalidated meanwhile.
    const cached = this.#usableCopy(id);
    if (cached === undefined || !isUnavailable(error)) throw error;
    this.lookups.stale += 1;
    return cached;
  }

  /** The cached copy if it was current within the last `staleMs`. */
  #usableCopy(id: Id): Entry | undefined {
    const { feed, staleMs } = this.#options;
    const cached = this.#records.get(id);
    if (cached === undefined) return undefined;
    return performance.now() - Math.max(cached.readAtMs, feed.caughtUpAtMs) < staleMs ? cached : undefined;
  }
}
