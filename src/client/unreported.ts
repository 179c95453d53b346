import type { KnownKey } from './known-keys.ts';
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
  /** The key whose uses wait, by its text: as long as that is here, its hash need not be made anew for each use. */
  keyOf(text: string): KnownKey | undefined;
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
  const waiting = new Map<string, Use>();
  /** Of keys that were forgotten here and learned again before these were reported. */
  const left: Use[] = [];

  function wait(text: string, use: Use): void {
    const before = waiting.get(text);
    if (before !== undefined) left.push(before);
    waiting.set(text, use);
    use.of.waiting = use.entry;
  }

  return {
    get size() {
      return waiting.size + left.length;
    },
    keyOf: (text) => waiting.get(text)?.of,
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
      wait(text, { of: key, grant, entry, sinceMs: before.sinceMs });
    },
    take(most, nowMs) {
      const taken = left.splice(0, most);
      for (const [text, use] of waiting) {
        if (taken.length >= most) break;
        waiting.delete(text);
        taken.push(use);
      }
      for (const use of taken) {
        use.of.waiting = undefined;
        forgetOld(use, nowMs);
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
      const known = of.waiting ?? of.unsent;
      if (known === undefined) of.unsent = { uses, cost, sinceMs };
      else {
        known.uses += uses;
        known.cost += cost;
      }
    },
  };
}

/** What lies further back than the window counts as use, and against no limit any more. */
function forgetOld(use: Use, nowMs: number): void {
  const { ownerLimit, keyLimit } = use.of;
  const windowMs = Math.max(ownerLimit.windowMs, keyLimit.windowMs);
  if (nowMs - use.sinceMs <= windowMs) return;
  ownerLimit.pending -= use.entry.cost;
  keyLimit.pending -= use.entry.cost;
  use.entry.cost = 0;
}
