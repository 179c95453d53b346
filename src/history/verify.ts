import type { Db } from '../database/client.ts';
import { flawOfRow } from './chain.ts';
import { type ChainVerdict, type WalkOptions, walkChain } from './chain-walk.ts';
import { findStrays, readEvents, readHead } from './store.ts';

export interface VerifyOptions extends WalkOptions {
  /** Called with the sequence number of the last checked event. */
  onProgress?: (events: number) => void;
  /** Stops between two batches. */
  signal?: AbortSignal;
}

/**
 * Recomputes a chain up to its current last event in constant memory and reports all flaws. Comparing with the stored
 * head also detects a tail that was cut.
 */
export async function verifyChain(db: Db, chain: string, options: VerifyOptions = {}): Promise<ChainVerdict> {
  const walk = walkChain(chain, options);
  const head = await readHead(db, chain);
  const after = options.from?.sequence ?? 0;
  for await (const rows of readEvents(db, chain, head.sequence, after)) {
    for (const row of rows) walk.take(row, flawOfRow, row.sequence);
    options.onProgress?.(walk.next() - 1);
    options.signal?.throwIfAborted();
  }
  if (head.sequence < after) {
    const reason = `the chain's head counts ${head.sequence} events, but there were ${after}: the tail was cut`;
    walk.fail({ firstSequence: head.sequence + 1, lastSequence: after, reason });
  } else if (walk.next() <= head.sequence) {
    const reason = `the chain's head counts ${head.sequence} events: the tail was cut`;
    walk.fail({ firstSequence: walk.next(), lastSequence: head.sequence, reason });
  } else if (walk.lastHash()?.equals(head.hash) === false) {
    const last = Math.max(head.sequence, 1);
    walk.fail({
      firstSequence: last,
      lastSequence: last,
      reason: "the hash of the chain's head differs from the hash of its last event",
    });
  }
  for (const stray of await findStrays(db, chain)) {
    walk.fail({ ...stray, reason: 'an event is stored outside the chain' });
  }
  return walk.end();
}
