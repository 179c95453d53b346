import type { KnownKey, KnownKeys } from './known-keys.ts';
import type { UseEntry } from './service-call.ts';
import { addressOf, type Question } from './verdict.ts';

/** Uses of one key that were let in here and not told to Latchkey. */
export interface Use {
  of: KnownKey;
  /** By what the key was let in. */
  grant: string;
  entry: UseEntry;
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
  /** It is not counted, and told with what comes next. Where its key was forgotten meanwhile, nothing comes. */
  putBack(use: Use): void;
}

/**
 * The text of a key is needed to report its uses, and kept for that long only: after a failed report what is left is the
 * counts, until the key is presented again.
 */
export function createUnreported(known: Pick<KnownKeys, 'has'>): Unreported {
  /** The oldest first. Of a key that was forgotten here and learned again there may be two. */
  const waiting = new Set<Use>();

  function settle({ of: { ownerLimit, keyLimit }, entry: { cost } }: Use, how?: 'perhaps counted'): void {
    for (const limit of [ownerLimit, keyLimit]) {
      if (how === undefined) limit.pending -= cost;
      else limit.assumeCounted(cost);
    }
  }

  return {
    get size() {
      return waiting.size;
    },
    add(key, grant, question, cost, nowMs) {
      key.ownerLimit.pending += cost;
      key.keyLimit.pending += cost;
      if (key.waiting !== undefined) {
        key.waiting.uses += 1;
        key.waiting.cost += cost;
        return;
      }
      const { key: text, permission } = question;
      const ip = addressOf(question);
      const before = key.unsent ?? { uses: 0, cost: 0, sinceMs: nowMs };
      key.unsent = undefined;
      const entry = {
        key: text,
        permission,
        ...(ip === undefined ? {} : { ip }),
        cost: before.cost + cost,
        uses: before.uses + 1,
      };
      waiting.add({ of: key, grant, entry, sinceMs: before.sinceMs });
      key.waiting = entry;
    },
    take(most, nowMs) {
      const taken: Use[] = [];
      for (const use of waiting) {
        if (taken.length >= most) break;
        waiting.delete(use);
        use.of.waiting = undefined;
        forgetOld(use, nowMs);
        taken.push(use);
      }
      return taken;
    },
    settle,
    putBack(use) {
      const { of, entry, sinceMs } = use;
      const { uses, cost } = entry;
      const next = of.waiting ?? of.unsent;
      if (next !== undefined) {
        next.uses += uses;
        next.cost += cost;
      } else if (known.has(of)) of.unsent = { uses, cost, sinceMs };
      else settle(use, 'perhaps counted');
    },
  };
}

/**
 * What lies further back than the window counts as use, and against no limit any more. Among it may be what was let in since: here
 * that stays taken from what is left.
 */
function forgetOld(use: Use, nowMs: number): void {
  const { ownerLimit, keyLimit } = use.of;
  const windowMs = Math.max(ownerLimit.windowMs, keyLimit.windowMs);
  if (nowMs - use.sinceMs <= windowMs) return;
  ownerLimit.assumeCounted(use.entry.cost);
  keyLimit.assumeCounted(use.entry.cost);
  use.entry.cost = 0;
  use.sinceMs = nowMs;
}
