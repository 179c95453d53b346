import type { Db } from '../database/client.ts';
import { flawOfRow } from './chain.ts';
import { type ChainVerdict, walkChain } from './chain-walk.ts';
import type { Checkpoint } from './checkpoints/checkpoint.ts';
import { findStrays, readEvents, readHead } from './store.ts';

interface VerifyOptions {
  /** What was signed about this chain earlier. */
  checkpoints?: readonly Checkpoint[];
  /** Called with the number of events that have been checked. */
  onProgress?: (events: number) => void;
  /** Ends it between two batches. */
  signal?: AbortSignal;
}

/**
 * Recomputes a chain from its first event to the one that is its last now, in constant memory, and names all that is
 * wrong. The head that the database keeps beside it must agree, so a tail that was cut alone shows too.
 */
export async function verifyChain(db: Db, chain: string, options: VerifyOptions = {}): Promise<ChainVerdict> {
  const walk = walkChain(chain, options.checkpoints);
  const head = await readHead(db, chain);
  for await (const rows of readEvents(db, chain, head.sequence)) {
    for (const row of rows) walk.take(row, flawOfRow, row.sequence);
    options.onProgress?.(walk.next() - 1);
    options.signal?.throwIfAborted();
  }
  if (walk.next() <= head.sequence) {
    const reason = `its head speaks of ${head.sequence} events: the tail was cut`;
    walk.fail({ firstSequence: walk.next(), lastSequence: head.sequence, reason });
  } else if (walk.lastHash()?.equals(head.hash) === false) {
    const last = Math.max(head.sequence, 1);
    walk.fail({ firstSequence: last, lastSequence: last, reason: 'its head has another hash than its last event' });
  }
  for (const stray of await findStrays(db, chain)) {
    walk.fail({ ...stray, reason: 'an event stands outside of the chain' });
  }
  return walk.end();
}
