import type { Checkpoint } from './checkpoint.ts';
import type { ChainState } from './checkpoint-store.ts';

/**
 * Why a chain must not be signed as it is, in words for people; undefined where it may. What has been signed once is never
 * contradicted: neither by less, nor by the same number of events that end otherwise, nor by more that go back to others.
 * @param signed the last checkpoint of the chain
 */
export function refusalOf(signed: Checkpoint | undefined, found: ChainState): string | undefined {
  if (signed !== undefined && found.size < signed.size) {
    return `it has ${found.size} events, and ${signed.size} were signed: its tail was cut, or the database is an older backup`;
  }
  if (found.size > 0 && found.lastHash?.equals(found.hash) !== true) {
    return `its head speaks of ${found.size} events, and the last of them is not there or is another one`;
  }
  if (signed !== undefined && signed.size > 0 && found.hashAtSigned?.equals(signed.hash) !== true) {
    return `its event ${signed.size} is not the one that was signed: it was rewritten, or an older backup has gone on`;
  }
  return undefined;
}
