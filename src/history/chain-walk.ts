import { firstPreviousHash, type Place } from './chain.ts';
import type { Checkpoint } from './checkpoints/checkpoint.ts';

/** A range of places, both ends inclusive, at which a chain is not as it was written. */
export interface ChainFlaw {
  firstSequence: number;
  lastSequence: number;
  /** For people. */
  reason: string;
}

export interface ChainVerdict {
  chain: string;
  /** How many events there are before the first flaw; all of them where there is none. */
  events: number;
  /** The hash of the last of these; 32 zero bytes where there is none. */
  head: Buffer;
  /** By place, at most `mostFlaws`. Empty: all is well. */
  flaws: ChainFlaw[];
  /** How many there are in all. */
  flawCount: number;
  /** How many checkpoints agree. */
  agreeing: number;
}

/** So many are kept, so that a chain which is wrong throughout takes no more memory than a sound one. */
const mostFlaws = 100;

/** Takes a chain's events one after the other, goes on after what is wrong, and says all of it at the end. */
export interface ChainWalk {
  /**
   * The next event. After a flaw the walk continues from the hash that is stored with the flawed event.
   * @param link undefined: there is something, but it cannot be read as an event
   * @param at the number that it stands under, where that is known; those that are left out are missing
   */
  take<Link extends { hash: Buffer }>(
    link: Link | undefined,
    flawIn: (link: Link, place: Place) => string | undefined,
    at?: number,
  ): void;
  /** What else is known to be wrong. */
  fail(flaw: ChainFlaw): void;
  /** The number that the next event has to have. */
  next(): number;
  /** The hash of the last event as it is stored; undefined where it is not known. */
  lastHash(): Buffer | undefined;
  /** No more events come. */
  end(): ChainVerdict;
}

/**
 * @param checkpoints of this chain, in any order. One that differs shows that something before it was changed, but not
 * what; the flaw then reaches from behind the last one that agrees.
 */
export function walkChain(chain: string, checkpoints: readonly Checkpoint[] = []): ChainWalk {
  const ahead = [...checkpoints].sort((one, other) => other.size - one.size);
  const flaws: ChainFlaw[] = [];
  let flawCount = 0;
  let firstBad = Number.POSITIVE_INFINITY;
  let next = 1;
  let lastHash: Buffer | undefined = firstPreviousHash;
  let sound: Pick<ChainVerdict, 'events' | 'head'> = { events: 0, head: firstPreviousHash };
  let agreeing = 0;
  let provenTo = 0;
  let contradicted: ChainFlaw | undefined;
  let latest: ChainFlaw | undefined;

  function fail(flaw: ChainFlaw): void {
    firstBad = Math.min(firstBad, flaw.firstSequence);
    if (latest?.reason === flaw.reason && latest.lastSequence + 1 === flaw.firstSequence) {
      latest.lastSequence = flaw.lastSequence;
      return;
    }
    latest = flaw;
    flawCount += 1;
    if (flaws.length < mostFlaws) flaws.push(flaw);
  }

  /** A checkpoint is of the place that was reached, or of one that is missing, about which it says nothing. */
  function compare(): void {
    for (let due = ahead.at(-1); due !== undefined && due.size < next; due = ahead.at(-1)) {
      ahead.pop();
      if (due.size !== next - 1 || lastHash === undefined) continue;
      if (due.hash.equals(lastHash)) {
        agreeing += 1;
        provenTo = due.size;
        contradicted = undefined;
      } else if (contradicted === undefined) {
        contradicted = {
          firstSequence: Math.min(provenTo + 1, Math.max(due.size, 1)),
          lastSequence: Math.max(due.size, 1),
          reason:
            `somewhere from here to ${due.size} it is not what a checkpoint of ${due.size} events has signed: ` +
            'it was rewritten, or an older backup has gone on',
        };
        fail(contradicted);
      } else contradicted.lastSequence = due.size;
    }
  }

  function advance(hash: Buffer | undefined): void {
    lastHash = hash;
    next += 1;
    compare();
    if (firstBad === Number.POSITIVE_INFINITY && hash !== undefined) sound = { events: next - 1, head: hash };
  }

  compare();
  return {
    take(link, flawIn, at = next) {
      if (at > next) {
        const reason = `an event that says it is number ${at} stands in its place`;
        fail({ firstSequence: next, lastSequence: at - 1, reason });
        next = at;
        lastHash = undefined;
      }
      const reason =
        link === undefined
          ? 'it is not a line of an export'
          : flawIn(link, { chain, sequence: next, previousHash: lastHash });
      if (reason !== undefined) fail({ firstSequence: next, lastSequence: next, reason });
      advance(link?.hash);
    },
    fail,
    next: () => next,
    lastHash: () => lastHash,
    end() {
      const [beyond] = ahead;
      if (beyond !== undefined && beyond.size >= next) {
        const reason = `a checkpoint has signed ${beyond.size} events: the tail was cut, or this is an older backup`;
        fail({ firstSequence: next, lastSequence: beyond.size, reason });
      }
      const sorted = flaws.sort((one, other) => one.firstSequence - other.firstSequence);
      return { chain, ...sound, flaws: sorted, flawCount, agreeing };
    },
  };
}
