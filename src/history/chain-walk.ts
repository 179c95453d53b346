import { firstPreviousHash, type Place } from './chain.ts';
import type { Checkpoint } from './checkpoints/checkpoint.ts';

/** A range of sequence numbers, both ends inclusive, where the stored chain is damaged. */
export interface ChainFlaw {
  firstSequence: number;
  lastSequence: number;
  /** In words, for the reader of the report. */
  reason: string;
}

export interface ChainVerdict {
  chain: string;
  /** Number of events before the first flaw; all events if there is none. */
  events: number;
  /** The hash of the last of these events; 32 zero bytes if there is none. */
  head: Buffer;
  /** Ordered by sequence, at most `mostFlaws`. Empty if the chain is sound. */
  flaws: ChainFlaw[];
  /** The number of all flaws, including those that `flaws` leaves out. */
  flawCount: number;
  /** The number of checkpoints that match the chain. */
  agreeing: number;
  /** The sequence number of the first event that was checked. */
  verifiedFrom: number;
}

/** Bounds the memory for a chain that is damaged throughout. */
const mostFlaws = 100;

/** Checks a chain's events one by one, continues after a flaw, and reports all flaws at the end. */
export interface ChainWalk {
  /**
   * Checks the next event. After a flaw the walk continues from the hash stored with the flawed event.
   * @param link undefined if the line or row cannot be read as an event
   * @param at the event's stored sequence number, if known; a jump means that the events before it are missing
   */
  take<Link extends { hash: Buffer }>(
    link: Link | undefined,
    flawIn: (link: Link, place: Place) => string | undefined,
    at?: number,
  ): void;
  /** Adds a flaw that was found by other means. */
  fail(flaw: ChainFlaw): void;
  /** The sequence number expected next. */
  next(): number;
  /** The stored hash of the last event; undefined if unknown. */
  lastHash(): Buffer | undefined;
  /** Ends the walk. */
  end(): ChainVerdict;
}

/** An event after which a walk can start: the events up to it are taken as sound. */
export interface ChainStart {
  sequence: number;
  hash: Buffer;
}

/** Before the first event. */
export const firstStart: ChainStart = { sequence: 0, hash: firstPreviousHash };

export interface WalkOptions {
  /**
   * Checkpoints of this chain, in any order. One that differs proves a change somewhere before it; the flaw then covers
   * everything after the last checkpoint that matches. Those before `from` are not compared.
   */
  checkpoints?: readonly Checkpoint[];
  /** The result of an earlier verification, compared like a checkpoint. */
  verified?: (ChainStart & { at: Date }) | undefined;
  /** If omitted, the walk starts at the first event. */
  from?: ChainStart | undefined;
}

/** The hash of event number `size`, from a checkpoint or, with its time, from an earlier verification. */
interface KnownHash {
  size: number;
  hash: Buffer;
  at?: Date;
}

export function walkChain(chain: string, options: WalkOptions = {}): ChainWalk {
  const { checkpoints = [], verified, from = firstStart } = options;
  const earlier = verified === undefined ? [] : [{ ...verified, size: verified.sequence }];
  const ahead: KnownHash[] = [...checkpoints, ...earlier].sort((one, other) => other.size - one.size);
  const flaws: ChainFlaw[] = [];
  let flawCount = 0;
  let firstBad = Number.POSITIVE_INFINITY;
  let next = from.sequence + 1;
  let lastHash: Buffer | undefined = from.hash;
  let sound: Pick<ChainVerdict, 'events' | 'head'> = { events: from.sequence, head: from.hash };
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

  /** Compares checkpoints up to the current event. A checkpoint of a missing event proves nothing. */
  function compare(): void {
    for (let due = ahead.at(-1); due !== undefined && due.size < next; due = ahead.at(-1)) {
      ahead.pop();
      if (due.size !== next - 1 || lastHash === undefined) continue;
      if (due.hash.equals(lastHash)) {
        if (due.at === undefined) agreeing += 1;
        provenTo = due.size;
        contradicted = undefined;
      } else if (contradicted === undefined) {
        contradicted = {
          firstSequence: Math.min(provenTo + 1, Math.max(due.size, 1)),
          lastSequence: Math.max(due.size, 1),
          reason: `the events up to ${due.size} differ from ${
            due.at === undefined
              ? `a signed checkpoint of ${due.size} events`
              : `those that were verified at ${due.at.toISOString()}`
          }: the chain was rewritten, or continued from an older backup`,
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
        const reason = `the event found here has sequence number ${at}`;
        fail({ firstSequence: next, lastSequence: at - 1, reason });
        next = at;
        lastHash = undefined;
      }
      const reason =
        link === undefined
          ? 'the line is not an exported event'
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
        const { size, at } = beyond;
        const known =
          at === undefined
            ? `a checkpoint has signed ${size} events`
            : `${size} events were verified at ${at.toISOString()}`;
        const reason = `${known}: the tail was cut, or this is an older backup`;
        fail({ firstSequence: next, lastSequence: beyond.size, reason });
      }
      const sorted = flaws.sort((one, other) => one.firstSequence - other.firstSequence);
      return { chain, ...sound, flaws: sorted, flawCount, agreeing, verifiedFrom: from.sequence + 1 };
    },
  };
}
