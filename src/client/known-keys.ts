import { hash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import type { BatchEntry } from './service.ts';
import { addressOf, type Question, type RateLimitState, type Verdict } from './verdict.ts';

/** A key that was good, by the hash of its text. The text itself is kept in its unreported uses, and nowhere else. */
export interface KnownKey {
  readonly hash: string;
  /** The latest answer in which it was good, without a limit. */
  facts: Verdict;
  /** Milliseconds since 1970, by Latchkey's clock. */
  expiresAtMs: number;
  /** For what, and where it matters from which address, it was good; when that was asked, in monotonic milliseconds. */
  readonly grants: Map<string, number>;
  /** Shared by all keys of one owner. */
  readonly ownerLimit: LocalLimit;
  readonly keyLimit: LocalLimit;
  /** Latchkey has said that a use of this cost is too much until then (monotonic milliseconds). */
  refused: { cost: number; untilMs: number } | undefined;
  /** Waits for the next report. */
  unreported: UnreportedUses | undefined;
  /** Uses whose report has failed. They go when the key goes. */
  failed: { uses: number; cost: number; sinceMs: number } | undefined;
}

/** Uses of one key that were allowed here, and that Latchkey does not know of. */
export interface UnreportedUses {
  key: KnownKey;
  /** By what the key was allowed. */
  grant: string;
  entry: BatchEntry & { uses: number };
  /** When the first of them was; monotonic milliseconds. */
  sinceMs: number;
}

/** SHA-256: a key's 256 random bits cannot be found from it, and the time of a lookup says nothing about them. */
export function hashOf(key: string): string {
  return hash('sha256', key, 'binary');
}

/** What an answer holds for. */
export function grantName({ dependsOnIp }: Pick<Verdict, 'dependsOnIp'>, question: Question): string {
  const { permission } = question;
  return dependsOnIp === true ? `${permission} ${addressOf(question) ?? ''}` : permission;
}

/** Addresses for each key; a client that changes its address is asked about again. */
const grantsOfKey = 200;

/** Keys that were good, found by hash, and by the ids on which their answers depend. */
export class KnownKeys {
  readonly #keys: LRUCache<string, KnownKey>;
  readonly #ownerLimits: LRUCache<string, LocalLimit>;
  /** Hashes by id of key, partner and organization. */
  readonly #dependents = new Map<string, Set<string>>();

  /** @param capacity keys kept at most; the one that was not used for longest makes room */
  constructor(capacity: number) {
    this.#keys = new LRUCache({ max: capacity, dispose: (key) => this.#unlink(key) });
    this.#ownerLimits = new LRUCache({ max: capacity });
  }

  get(hash: string): KnownKey | undefined {
    return this.#keys.get(hash);
  }

  /** Whether it was not forgotten since it was given. */
  has(key: KnownKey): boolean {
    return this.#keys.peek(key.hash) === key;
  }

  /** Takes over an answer in which the key was good. @param askedAtMs monotonic milliseconds */
  learn(hash: string, question: Question, verdict: Verdict, askedAtMs: number): KnownKey {
    const known = this.#keys.get(hash) ?? this.#add(hash, verdict);
    // Many requests share them.
    deepFreeze(verdict.metadata);
    known.facts = { ...verdict, valid: true, code: 'valid', rateLimit: null };
    known.expiresAtMs = verdict.expiresAt === null ? Number.POSITIVE_INFINITY : Date.parse(verdict.expiresAt);
    known.grants.set(grantName(verdict, question), askedAtMs);
    if (known.grants.size > grantsOfKey) known.grants.delete(known.grants.keys().next().value ?? '');
    return known;
  }

  forget(hash: string): void {
    this.#keys.delete(hash);
  }

  /** Forgets the keys that depend on one of these ids. */
  forgetDependents(ids: Iterable<string>): void {
    for (const id of ids) {
      this.#ownerLimits.delete(id);
      // The organization's limit is that of every partner that has none of its own.
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
    // These uses are never reported, and the limit that others share must not wait for them.
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

/** Takes over what Latchkey said of a limit. */
export function learnLimit({ ownerLimit, keyLimit }: KnownKey, state: RateLimitState | null, nowMs: number): void {
  if (state === null) return;
  (state.policy === 'owner' ? ownerLimit : keyLimit).learn(state, nowMs);
}

/** Of both limits the one with the least left, as Latchkey would say it. */
export function limitOf({ ownerLimit, keyLimit }: KnownKey, nowMs: number): RateLimitState | null {
  const [owner, key] = [ownerLimit.state('owner', nowMs), keyLimit.state('key', nowMs)];
  if (owner === undefined || key === undefined) return owner ?? key ?? null;
  return key.remaining <= owner.remaining ? key : owner;
}

/** Of what is left of a limit this part may be used before it is reported: 16 backends cannot use it up between them. */
const creditShare = 16;

interface LimitWindow {
  limit: number;
  windowSeconds: number;
  remaining: number;
  /** Monotonic milliseconds. */
  resetAtMs: number;
}

/** Two estimates of one window's end differ by less than this: Latchkey gives it in whole seconds. */
const sameWindowMs = 1_000;

/** One limit, as Latchkey said last, and the uses that were allowed here since. */
export class LocalLimit {
  /** Allowed here, and not known to be counted by Latchkey. */
  pending = 0;
  #window: LimitWindow | undefined;

  /** Within a window less can be left but not more; replies may overtake each other. */
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

  /** Whether an unused window has room for so much. */
  mayFit(cost: number): boolean {
    return this.#window === undefined || cost <= this.#window.limit;
  }

  /** Whether so much may be allowed without asking. False where the window is over: how the next one stands is not known. */
  hasCredit(cost: number, nowMs: number): boolean {
    const window = this.#window;
    if (window === undefined) return true;
    return nowMs < window.resetAtMs && this.pending + cost <= window.remaining / creditShare;
  }

  /** The same while Latchkey cannot be asked: all that was left may be used, and a new window begins here. */
  hasRest(cost: number, nowMs: number): boolean {
    const window = this.#window;
    if (window === undefined) return true;
    if (nowMs >= window.resetAtMs) {
      window.remaining = window.limit + this.pending;
      window.resetAtMs = nowMs + window.windowSeconds * 1_000;
    }
    return this.pending + cost <= window.remaining;
  }

  /** Whether it was counted there is not known: as if it was. */
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
 * Collects the uses that were allowed here until they are reported. The text of a key is needed for that, and kept for
 * that long only: after a failed report what is left is the counts, until the key is presented again.
 */
export class Unreported {
  readonly #known: KnownKeys;
  /** The oldest first. Of a key that was forgotten here and learned again there may be two. */
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

  /** Hands out at most so many. */
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

  /** They are counted. */
  settle({ key: { ownerLimit, keyLimit }, entry: { cost } }: UnreportedUses): void {
    ownerLimit.pending -= cost;
    keyLimit.pending -= cost;
  }

  /** Whether they are counted is not known: they are not reported again. */
  abandon({ key: { ownerLimit, keyLimit }, entry: { cost } }: UnreportedUses): void {
    ownerLimit.assumeCounted(cost);
    keyLimit.assumeCounted(cost);
  }

  /** They are not counted, and are reported with the key's next use. Where the key was forgotten meanwhile, none comes. */
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
 * Uses from before the window count in the usage, and against no limit any more. Among them may be some from this
 * window: here they stay taken from what is left.
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
