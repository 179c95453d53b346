import type { Db } from '../db/client.ts';
import { flawOfRow } from './chain.ts';
import { type ChainVerdict, walkChain } from './chain-walk.ts';
import type { Checkpoint } from './checkpoint.ts';
import { findStray, readEvents, readHead } from './store.ts';

interface VerifyOptions {
  /** What was signed about this chain earlier. */
  checkpoints?: readonly Checkpoint[];
  /** Told how many events have been looked at. */
  onProgress?: (events: number) => void;
  /** Ends it between two batches. */
  signal?: AbortSignal;
}

/**
 * Recomputes a chain from its first event to the one that is its last now, in constant memory. The end that the database
 * keeps beside it must agree, so a tail that was cut without touching that shows too.
 */
export async function verifyChain(db: Db, chain: string, options: VerifyOptions = {}): Promise<ChainVerdict> {
  const walk = walkChain(chain, options.checkpoints);
  const head = await readHead(db, chain);
  let isSound = true;
  let seen = 0;
  for await (const rows of readEvents(db, chain, head.sequence)) {
    isSound = rows.every((row) => walk.take(row, (place) => flawOfRow(row, place)));
    if (!isSound) break;
    seen += rows.length;
    options.onProgress?.(seen);
    options.signal?.throwIfAborted();
  }
  if (isSound && seen < head.sequence) walk.fail(`its head speaks of ${head.sequence} events: the tail was cut`);
  const stray = await findStray(db, chain);
  if (stray !== undefined) walk.fail('an event stands outside of the chain', stray);
  const verdict = walk.end();
  if (verdict.flaw !== undefined || verdict.head.equals(head.hash)) return verdict;
  return {
    ...verdict,
    flaw: { sequence: Math.max(verdict.events, 1), what: 'its head has another hash than its last event' },
  };
}
