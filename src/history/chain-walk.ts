import { firstPreviousHash, type Link, type Place } from './chain.ts';
import type { Checkpoint } from './checkpoint.ts';

/** The first place at which a chain is not as it was written. */
export interface ChainFlaw {
  sequence: number;
  /** For people. */
  what: string;
}

export interface ChainVerdict {
  chain: string;
  /** How many events are sound. */
  events: number;
  /** The last sound event's hash; 32 zero bytes where there is none. */
  head: Buffer;
  flaw: ChainFlaw | undefined;
  /** How many checkpoints agree. */
  agreeing: number;
}

/** Takes a chain's events one after the other and says at the end what is wrong. */
export interface ChainWalk {
  /** @returns whether it goes on: false once there is a flaw, and from then on nothing more needs to be taken */
  take(link: Link, flawIn: (place: Place) => string | undefined): boolean;
  /** What else is known to be wrong. The first flaw stays. */
  fail(what: string, sequence?: number): void;
  /** No more events come. */
  end(): ChainVerdict;
}

/**
 * @param checkpoints of this chain, in any order. One that differs shows that something before it was changed, and not
 * what; the flaw is then put behind the last one that agrees.
 */
export function walkChain(chain: string, checkpoints: readonly Checkpoint[] = []): ChainWalk {
  const ahead = [...checkpoints].sort((one, other) => one.size - other.size);
  let events = 0;
  let head: Buffer = firstPreviousHash;
  let flaw: ChainFlaw | undefined;
  let agreeing = 0;
  let provenTo = 0;

  const fail = (what: string, sequence = events + 1) => {
    flaw ??= { sequence, what };
  };
  const compare = () => {
    for (let next = ahead[0]; flaw === undefined && next?.size === events; next = ahead[0]) {
      ahead.shift();
      if (!next.hash.equals(head)) {
        fail(
          `somewhere from here to ${next.size} it is not what a checkpoint of ${next.size} events has signed: ` +
            'it was rewritten, or an older backup has gone on',
          Math.min(provenTo + 1, Math.max(next.size, 1)),
        );
        return;
      }
      agreeing += 1;
      provenTo = events;
    }
  };
  compare();
  return {
    take(link, flawIn) {
      if (flaw !== undefined) return false;
      const what = flawIn({ chain, sequence: events + 1, previousHash: head });
      if (what !== undefined) fail(what);
      else {
        events += 1;
        head = link.hash;
        compare();
      }
      return flaw === undefined;
    },
    fail,
    end() {
      const beyond = ahead.at(-1);
      if (beyond !== undefined) {
        fail(`a checkpoint has signed ${beyond.size} events: the tail was cut, or this is an older backup`);
      }
      return { chain, events, head, flaw, agreeing };
    },
  };
}
