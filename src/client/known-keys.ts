import { hash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import { KeptRecord, KeptRecords } from '../core/kept-records.ts';
import { LocalLimit } from './local-limit.ts';
import type { UseEntry } from './service-call.ts';
import { type ApiKey, addressOf, apiKeyIn, type Question, type RateLimitState, type Verdict } from './verdict.ts';

/** A key that was good, by the hash of its text. The text itself is in what waits to be told, and nowhere else. */
export class KnownKey extends KeptRecord {
  /** The hash. */
  readonly id: string;
  /** The latest answer in which it was good. */
  facts: Verdict;
  /** What backends are told of it. */
  apiKey: ApiKey;
  /** Milliseconds since 1970, by Latchkey's clock. */
  expiresAtMs: number;
  /** For what, and where it matters from which address, it was good; when that was asked, in monotonic milliseconds. */
  readonly grants = new Map<string, number>();
  /** Shared by all keys of one owner. */
  readonly ownerLimit: LocalLimit;
  readonly keyLimit = new LocalLimit();
  /** Latchkey has said that a use of this cost is too much until then (monotonic milliseconds). */
  refused: { cost: number; untilMs: number } | undefined = undefined;
  /** What will be told of its uses. */
  waiting: UseEntry | undefined = undefined;
  /** Uses of which Latchkey could not be told. They go when the key goes. */
  unsent: { uses: number; cost: number; sinceMs: number } | undefined = undefined;

  constructor(hash: string, facts: Verdict, ownerLimit: LocalLimit) {
    super();
    this.id = hash;
    this.facts = facts;
    this.apiKey = apiKeyIn(facts);
    this.expiresAtMs = expiryOf(facts);
    this.ownerLimit = ownerLimit;
  }
}

/** SHA-256: a key's 256 random bits cannot be gone back to, and a lookup by it tells nothing by its time. */
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

export interface KnownKeys {
  get(hash: string): KnownKey | undefined;
  /** What was given before, where it was not forgotten since. */
  again(key: KnownKey): KnownKey | undefined;
  /** Whether it was not forgotten since it was given. */
  has(key: KnownKey): boolean;
  /** Takes over an answer in which the key was good. @param askedAtMs monotonic milliseconds */
  learn(hash: string, question: Question, verdict: Verdict, askedAtMs: number): KnownKey;
  forget(hash: string): void;
  /** Forgets the keys that depend on one of these ids. */
  forgetDependents(ids: Iterable<string>): void;
  clear(): void;
}

/** @param capacity keys kept at most; one that has not been used for long makes room */
export function createKnownKeys(capacity: number): KnownKeys {
  const dependents = new Map<string, Set<string>>();
  const ownerLimits = new LRUCache<string, LocalLimit>({ max: capacity });
  const keys = new KeptRecords<string, KnownKey>(capacity, unlink);

  function unlink({ facts, id: hash, ownerLimit, unsent }: KnownKey): void {
    // Nobody will be told of them any more, and the limit that others share must not wait for that.
    if (unsent !== undefined) ownerLimit.assumeCounted(unsent.cost);
    for (const id of idsOf(facts)) {
      const hashes = dependents.get(id);
      hashes?.delete(hash);
      if (hashes?.size === 0) dependents.delete(id);
    }
  }

  function link({ facts, id: hash }: KnownKey): void {
    for (const id of idsOf(facts)) {
      const hashes = dependents.get(id);
      if (hashes === undefined) dependents.set(id, new Set([hash]));
      else hashes.add(hash);
    }
  }

  function limitOf({ partnerId, organizationId }: Verdict): LocalLimit {
    const owner = partnerId ?? organizationId ?? '';
    const known = ownerLimits.get(owner) ?? new LocalLimit();
    ownerLimits.set(owner, known);
    return known;
  }

  function make(hash: string, facts: Verdict): KnownKey {
    const made = new KnownKey(hash, facts, limitOf(facts));
    keys.add(made);
    link(made);
    return made;
  }

  return {
    get: (hash) => keys.get(hash),
    again: (key) => keys.again(key),
    has: (key) => keys.has(key),
    learn(hash, question, verdict, askedAtMs) {
      const known = keys.get(hash) ?? make(hash, verdict);
      known.facts = verdict;
      known.apiKey = apiKeyIn(verdict);
      known.expiresAtMs = expiryOf(verdict);
      known.grants.set(grantName(verdict, question), askedAtMs);
      if (known.grants.size > grantsOfKey) known.grants.delete(known.grants.keys().next().value ?? '');
      return known;
    },
    forget: (hash) => keys.delete(hash),
    forgetDependents(ids) {
      for (const id of ids) {
        ownerLimits.delete(id);
        // The organization's limit is that of every partner that has none of its own.
        if (id.startsWith('org_')) ownerLimits.clear();
        for (const hash of [...(dependents.get(id) ?? [])]) keys.delete(hash);
      }
    },
    clear() {
      keys.clear();
      dependents.clear();
      ownerLimits.clear();
    },
  };
}

export function idsOf({ keyId, partnerId, organizationId }: Verdict): string[] {
  return [keyId, partnerId, organizationId].filter((id) => id !== null);
}

function expiryOf({ expiresAt }: Verdict): number {
  return expiresAt === null ? Number.POSITIVE_INFINITY : Date.parse(expiresAt);
}

/** What Latchkey has told of a limit, where it belongs. */
export function learnLimit({ ownerLimit, keyLimit }: KnownKey, state: RateLimitState | null, nowMs: number): void {
  if (state === null) return;
  (state.policy === 'owner' ? ownerLimit : keyLimit).learn(state, nowMs);
}
