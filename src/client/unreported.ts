import type { KnownKey } from './known-keys.ts';
import type { Entry } from './service-call.ts';
import { addressOf, type Question } from './verdict.ts';

/** Uses of one key that were let in here and not told to Latchkey. */
export interface Use {
  of: KnownKey;
  /** By what the key was let in. */
  grant: string;
  entry: Entry & { uses: number };
  /** When the first of them was; monotonic milliseconds. */
  sinceMs: number;
}

/** Collects what was let in here, until Latchkey is told. */
export interface Unreported {
  readonly size: number;
  add(key: KnownKey, grant: string, question: Question, cost: number, nowMs: number): void;
  /** Hands out at most so many. */
  take(most: number, nowMs: number): Use[];
  /** It is counted, or nobody knows whether it is. */
  settle(use: Use, how?: 'perhaps counted'): void;
  /** It is not counted. */
  putBack(use: Use): void;
}

/**
 * The text of a key is needed to report its uses, and kept for that long only: after a failed report what is left is the
 * counts, until the key is presented again.
 */
export function createUnreported(): Unreported {
  const waiting = new Map<KnownKey, Use>();
  /** Counts of failed reports. They go when the key goes. */
  const kept = new WeakMap<KnownKey, Pick<Use, 'sinceMs'> & { uses: number; cost: number }>();

  return {
    get size() {
      return waiting.size;
    },
    add(key, grant, question, cost, nowMs) {
      key.ownerLimit.pending += cost;
      key.keyLimit.pending += cost;
      const use = waiting.get(key);
      if (use !== undefined) {
        use.entry.uses += 1;
        use.entry.cost += cost;
        return;
      }
      const { key: text, permission } = question;
      const ip = addressOf(question);
      const before = kept.get(key) ?? { uses: 0, cost: 0, sinceMs: nowMs };
      kept.delete(key);
      const entry = {
        key: text,
        permission,
        ...(ip === undefined ? {} : { ip }),
        cost: before.cost + cost,
        uses: before.uses + 1,
      };
      waiting.set(key, { of: key, grant, entry, sinceMs: before.sinceMs });
    },
    take(most, nowMs) {
      const taken: Use[] = [];
      for (const [key, use] of waiting) {
        if (taken.length >= most) break;
        waiting.delete(key);
        taken.push(forgetOld(use, nowMs));
      }
      return taken;
    },
    settle(use, how) {
      const { ownerLimit, keyLimit } = use.of;
      for (const limit of [ownerLimit, keyLimit]) {
        if (how === undefined) limit.pending -= use.entry.cost;
        else limit.assumeCounted(use.entry.cost);
      }
    },
    putBack({ of, entry: { uses, cost }, sinceMs }) {
      const known = waiting.get(of)?.entry ?? kept.get(of);
      if (known === undefined) kept.set(of, { uses, cost, sinceMs });
      else {
        known.uses += uses;
        known.cost += cost;
      }
    },
  };
}

/** What lies further back than the window counts as use, and against no limit any more. */
function forgetOld(use: Use, nowMs: number): Use {
  const { ownerLimit, keyLimit } = use.of;
  const windowMs = Math.max(ownerLimit.windowMs, keyLimit.windowMs);
  if (nowMs - use.sinceMs <= windowMs) return use;
  ownerLimit.pending -= use.entry.cost;
  keyLimit.pending -= use.entry.cost;
  use.entry.cost = 0;
  return use;
}
