import { sql } from 'kysely';
import type { Db } from '../db/client.ts';
import { firstPreviousHash } from './chain.ts';
import type { Checkpoint } from './checkpoint.ts';

/** A chain as the database has it in one moment. */
export interface ChainState extends Checkpoint {
  /** The hash of the event that the head names as last; null where there is no such event. */
  lastHash: Buffer | null;
  /** The hash of the event that was last when the chain was signed the time before; null where there is none. */
  hashAtSigned: Buffer | null;
}

/** @param signed which chains, each with the number of events that was signed last, or 0 */
export async function readChainStates(
  db: Db,
  signed: ReadonlyArray<{ chain: string; size: number }>,
): Promise<ChainState[]> {
  const { rows } = await sql<ChainState>`
    select asked.chain,
      coalesce(head.sequence, 0) as size,
      coalesce(head.hash, ${firstPreviousHash}) as hash,
      last.hash as "lastHash",
      at_signed.hash as "hashAtSigned"
    from unnest(${signed.map(({ chain }) => chain)}::text[], ${signed.map(({ size }) => size)}::bigint[])
      as asked (chain, size)
    left join history_heads as head on head.chain = asked.chain
    left join history as last on last.chain = asked.chain and last.sequence = head.sequence
    left join history as at_signed on at_signed.chain = asked.chain and at_signed.sequence = asked.size`.execute(db);
  return rows;
}
