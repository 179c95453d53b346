import { hash } from 'node:crypto';
import { LruMap } from './lru-map.ts';
import type { BatchEntry } from './service.ts';
import { addressOf, type Question, type RateLimitState, type Verdict } from './verdict.ts';

/** A key that was valid, by the hash of its text. The text itself is kept only in its unreported uses. */
export interface KnownKey {
  readonly hash: string;
  /** The latest valid answer, without its limit. */
  facts: Verdict;
  /** Milliseconds since 1970, by Latchkey's clock. */
  expiresAtMs: number;
  /**
   * The permissions (and addresses, if they matter) with which the key was valid, and when that was asked (monotonic
   * milliseconds).
   */
  readonly grants: Map<string, number>;
  /** Shared by all keys of one owner. */
  readonly ownerLimit: LocalLimit;
  readonly keyLimit: LocalLimit;
  /** Latchkey rejected a use of this cost until then (monotonic milliseconds). */
  refused: { cost: number; untilMs: number } | undefined;
  /** Uses that wait for the next report. */
  unreported: UnreportedUses | undefined;
  /** Uses whose report failed. They are dropped with the key. */
  failed: { uses: number; cost: number; sinceMs: number } | undefined;
}

/** Locally allowed uses of one key that are not reported yet. */
export interface UnreportedUses {
  key: KnownKey;
  /** The permission of these uses. */
  grant: string;
  entry: BatchEntry & { uses: number };
  /** The time of the first use (monotonic milliseconds). */
  sinceMs: number;
}

/**
 * SHA-256: a key's 256 random bits cannot be found from its hash, and the time of a lookup reveals nothing about them.
 */
export function hashOf(key: string): string {
  return hash('sha256', key, 'binary');
}

/** The permission and address for which an answer is valid. */
export function grantName({ dependsOnIp }: Pick<Verdict, 'dependsOnIp'>, question: Question): string {
  const { permission } = question;
  return dependsOnIp === true ? `${permission} ${addressOf(question) ?? ''}` : permission;
}

/** The maximum number of addresses per key. For further ones Latchkey is asked again. */
const grantsOfKey = 200;

/** The cache of valid keys, by hash and by the ids on which their answers depend. */
export class KnownKeys {
  readonly #keys: LruMap<string, KnownKey>;
  readonly #ownerLimits: LruMap<string, LocalLimit>;
  /** Hashes by id of key, partner and organization. */
  readonly #dependents = new Map<string, Set<string>>();

  /** @param capacity the maximum number of keys; the least recently used one is dropped */
  constructor(capacity: number) {
    this.#keys = new LruMap(capacity, (key) => this.#unlink(key));
    this.#ownerLimits = new LruMap(capacity);
  }

  get(hash: string): KnownKey | undefined {
    return this.#keys.get(hash);
  }

  /** Whether the key is still cached. */
  has(key: KnownKey): boolean {
    return this.#keys.peek(key.hash) === key;
  }

  /** Stores a valid answer. @param askedAtMs monotonic milliseconds */
  learn(hash: string, question: Question, verdict: Verdict, askedAtMs: number): KnownKey {
    const known = this.#keys.get(hash) ?? this.#add(hash, verdict);
    // Many requests share these objects.
    deepFreeze(verdict.metadata);
    deepFreeze(verdict.scopes);
    known.facts = { ...verdict, valid: true, code: 'valid', rateLimit: null };
    known.expiresAtMs = verdict.expiresAt === null ? Number.POSITIVE_INFINITY : Date.parse(verdict.expiresAt);
    known.grants.set(grantName(verdict, question), askedAtMs);
    if (known.grants.size > grantsOfKey) known.grants.delete(known.grants.keys().next().value ?? '');
    return known;
  }

  forget(hash: string): void {
    this.#keys.delete(hash);
  }

  /** Drops the keys that depend on one of these ids. */
  forgetDependents(ids: Iterable<string>): void {
    for (const id of ids) {
      this.#ownerLimits.delete(id);
      // The organization's limit applies to every partner without its own.
      if (id.startsWith('org_')) this.#ownerLimits.clear();
      for (const hash of [...(this.#dependents.get(id) ?? [])]) this.#keys.delete(hash);
    }
  }

  clear(): void {
    this.#keys.clear();
    this.#ownerLimits.clear();
  }

  #add(hash: string, facts: Verdict): KnownKey {
    const owner = facts.partnerId ?? facts.organizationId ?? '';
    const ownerLimit = this.#ownerLimits.get(owner) ?? new LocalLimit();
    this.#ownerLimits.set(owner, ownerLimit);
    const key: KnownKey = {
      hash,
      facts,
      expiresAtMs: 0,
      grants: new Map(),
      ownerLimit,
      keyLimit: new LocalLimit(),
      refused: undefined,
      unreported: undefined,
      failed: undefined,
    };
    this.#keys.set(hash, key);
    for (const id of idsOf(facts)) {
      const hashes = this.#dependents.get(id);
      if (hashes === undefined) this.#dependents.set(id, new Set([hash]));
      else hashes.add(hash);
    }
    return key;
  }

  #unlink({ facts, hash, ownerLimit, failed }: KnownKey): void {
    // These uses are never reported, so the shared limit must not wait for them.
    if (failed !== undefined) ownerLimit.assumeCounted(failed.cost);
    for (const id of idsOf(facts)) {
      const hashes = this.#dependents.get(id);
      hashes?.delete(hash);
      if (hashes?.size === 0) this.#dependents.delete(id);
    }
  }
}

function deepFreeze(value: unknown): void {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return;
  Object.freeze(value);
  for (const member of Object.values(value)) deepFreeze(member);
}

export function idsOf({ keyId, partnerId, organizationId }: Verdict): string[] {
  return [keyId, partnerId, organizationId].filter((id) => id !== null);
}

/** Stores the state of a limit from a reply. */
export function learnLimit({ ownerLimit, keyLimit }: KnownKey, state: RateLimitState | null, nowMs: number): void {
  if (state === null) return;
  (state.policy === 'owner' ? ownerLimit : keyLimit).learn(state, nowMs);
}

/** Of both limits, the one with the least remaining, as Latchkey reports it. */
export function limitOf({ ownerLimit, keyLimit }: KnownKey, nowMs: number): RateLimitState | null {
  const [owner, key] = [ownerLimit.state('owner', nowMs), keyLimit.state('key', nowMs)];
  if (owner === undefined || key === undefined) return owner ?? key ?? null;
  return key.remaining <= owner.remaining ? key : owner;
}

/** This part of the remaining limit may be used before it is reported: 16 backends together cannot exceed the limit. */
const creditShare = 16;

interface LimitWindow {
  limit: number;
  windowSeconds: number;
  remaining: number;
  /** Monotonic milliseconds. */
  resetAtMs: number;
}

/** Two estimates of the end of one window differ by less than this: Latchkey sends whole seconds. */
const sameWindowMs = 1_000;

/** One limit: its last state from Latchkey, and the uses that were allowed locally since. */
export class LocalLimit {
  /** Uses that were allowed here and are not known to be counted by Latchkey. */
  pending = 0;
  #window: LimitWindow | undefined;

  /** Within a window the remaining number only decreases; replies may overtake each other. */
  learn({ limit, windowSeconds, remaining, resetSeconds }: RateLimitState, nowMs: number): void {
    const resetAtMs = nowMs + resetSeconds * 1_000;
    const known = this.#window;
    const isSame =
      known?.limit === limit &&
      known.windowSeconds === windowSeconds &&
      Math.abs(known.resetAtMs - resetAtMs) <= sameWindowMs;
    if (isSame) known.remaining = Math.min(known.remaining, remaining);
    else this.#window = { limit, windowSeconds, remaining, resetAtMs };
  }

  get windowMs(): number {
    return (this.#window?.windowSeconds ?? 0) * 1_000;
  }

  /** Whether a whole window allows this cost. */
  mayFit(cost: number): boolean {
    return this.#window === undefined || cost <= this.#window.limit;
  }

  /**
   * Whether this cost may be allowed without a call. False after the window: the state of the next one is not known.
   */
  hasCredit(cost: number, nowMs: number): boolean {
    const window = this.#window;
    if (window === undefined) return true;
    return nowMs < window.resetAtMs && this.pending + cost <= window.remaining / creditShare;
  }

  /**
   * The same while Latchkey cannot be reached: all of the remaining limit may be used, and a new window begins here.
   */
  hasRest(cost: number, nowMs: number): boolean {
    const window = this.#window;
    if (window === undefined) return true;
    if (nowMs >= window.resetAtMs) {
      window.remaining = window.limit + this.pending;
      window.resetAtMs = nowMs + window.windowSeconds * 1_000;
    }
    return this.pending + cost <= window.remaining;
  }

  /** It is not known whether the use was counted, so it counts as counted. */
  assumeCounted(cost: number): void {
    this.pending -= cost;
    if (this.#window !== undefined) this.#window.remaining = Math.max(0, this.#window.remaining - cost);
  }

  state(policy: RateLimitState['policy'], nowMs: number): RateLimitState | undefined {
    const window = this.#window;
    if (window === undefined) return undefined;
    return {
      policy,
      limit: window.limit,
      windowSeconds: window.windowSeconds,
      remaining: Math.max(0, window.remaining - this.pending),
      resetSeconds: Math.max(1, Math.ceil((window.resetAtMs - nowMs) / 1_000)),
    };
  }
}

/**
 * Collects locally allowed uses until they are reported. The report needs the key's text, which is kept only until
 * then. After a failed report only the counts remain, until the key is used again.
 */
export class Unreported {
  readonly #known: KnownKeys;
  /** The oldest first. A key that was dropped and cached again may occur twice. */
  readonly #waiting = new Set<UnreportedUses>();

  constructor(known: KnownKeys) {
    this.#known = known;
  }

  get size(): number {
    return this.#waiting.size;
  }

  add(key: KnownKey, grant: string, question: Question, cost: number, nowMs: number): void {
    key.ownerLimit.pending += cost;
    key.keyLimit.pending += cost;
    if (key.unreported === undefined) {
      const { permission } = question;
      const ip = addressOf(question);
      const { uses, cost, sinceMs } = key.failed ?? { uses: 0, cost: 0, sinceMs: nowMs };
      key.failed = undefined;
      const entry = { key: question.key, permission, ...(ip === undefined ? {} : { ip }), uses, cost };
      key.unreported = { key, grant, entry, sinceMs };
      this.#waiting.add(key.unreported);
    }
    key.unreported.entry.uses += 1;
    key.unreported.entry.cost += cost;
  }

  /** Takes out at most this many. */
  take(most: number, nowMs: number): UnreportedUses[] {
    const taken: UnreportedUses[] = [];
    for (const uses of this.#waiting) {
      if (taken.length >= most) break;
      taken.push(uses);
      this.#waiting.delete(uses);
      uses.key.unreported = undefined;
      forgetOldCost(uses, nowMs);
    }
    return taken;
  }

  /** Latchkey has counted these uses. */
  settle({ key: { ownerLimit, keyLimit }, entry: { cost } }: UnreportedUses): void {
    ownerLimit.pending -= cost;
    keyLimit.pending -= cost;
  }

  /** It is not known whether these uses were counted. They are not reported again. */
  abandon({ key: { ownerLimit, keyLimit }, entry: { cost } }: UnreportedUses): void {
    ownerLimit.assumeCounted(cost);
    keyLimit.assumeCounted(cost);
  }

  /** These uses were not counted. They are reported with the key's next use, unless the key was dropped meanwhile. */
  putBack(uses: UnreportedUses): void {
    const { key, entry, sinceMs } = uses;
    const next = key.unreported?.entry ?? key.failed;
    if (next !== undefined) {
      next.uses += entry.uses;
      next.cost += entry.cost;
    } else if (this.#known.has(key)) key.failed = { uses: entry.uses, cost: entry.cost, sinceMs };
    else this.abandon(uses);
  }
}

/**
 * Uses from before the window count only as usage, not against a limit. Some of them may be from this window: here they
 * stay subtracted from the remaining limit.
 */
function forgetOldCost(uses: UnreportedUses, nowMs: number): void {
  const { key, entry, sinceMs } = uses;
  const { ownerLimit, keyLimit } = key;
  if (nowMs - sinceMs <= Math.max(ownerLimit.windowMs, keyLimit.windowMs)) return;
  ownerLimit.assumeCounted(entry.cost);
  keyLimit.assumeCounted(entry.cost);
  entry.cost = 0;
  uses.sinceMs = nowMs;
}
