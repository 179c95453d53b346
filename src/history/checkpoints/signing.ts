import type { FastifyBaseLogger } from 'fastify';
import { sql } from 'kysely';
import pLimit from 'p-limit';
import type { Keyring } from '../../crypto/keyring.ts';
import { checkNote } from '../../crypto/signed-note.ts';
import type { Db } from '../../database/client.ts';
import { Problem } from '../../domain/errors.ts';
import { chunksOf, pagesOf } from '../../lib/batches.ts';
import { firstPreviousHash } from '../chain.ts';
import { type ChainHead, listHeads } from '../store.ts';
import {
  type Checkpoint,
  checkpointSigners,
  parseCheckpoint,
  publicKeysText,
  type SignedCheckpoint,
  signCheckpoint,
} from './checkpoint.ts';

/** Signs the heads of chains, and never one that contradicts what it has signed before. */
export interface Checkpoints {
  /** The public keys that check a checkpoint; see `publicKeysText`. */
  publicKeys: string;
  /**
   * Signs the chain's present head.
   * @throws Problem `history_altered` where that would contradict an earlier checkpoint
   */
  sign(chain: string): Promise<string>;
  /**
   * Signs every chain that has changed since it was signed last.
   * @returns the new notes
   */
  signChanged(): Promise<string[]>;
  /** How many chains it refuses to sign; those that are as they should be again are not among them. */
  refused(): number;
}

/** Where checkpoints are remembered beyond the life of a process: notes, one after the other, which are only appended. */
export interface CheckpointFile {
  /** The last checkpoint of each chain that the file had when it was opened. */
  remembered: SignedCheckpoint[];
  /** Texts in it that are no whole notes, such as a crash leaves behind. */
  torn: number;
  /** Remembered ones that no key of this keyring has signed. They are believed: that can only make more be refused. */
  unknownKeys: number;
  /** Resolves when they are on the disk. */
  append(notes: readonly string[]): Promise<void>;
  close(): Promise<void>;
}

interface CheckpointsOptions {
  db: Db;
  keyring: Keyring;
  /** Where checkpoints are remembered; without it only in memory, and only for as long as this lives. */
  file?: CheckpointFile | undefined;
  logger: Pick<FastifyBaseLogger, 'error' | 'info'>;
}

/** Chains that are looked at together. */
const batchSize = 500;

export function createCheckpoints({ db, keyring, file, logger }: CheckpointsOptions): Checkpoints {
  const signers = checkpointSigners(keyring);
  const primary = signers.slice(0, 1);
  const signed = new Map((file?.remembered ?? []).map((checkpoint) => [checkpoint.chain, checkpoint]));
  const refusals = new Map<string, string>();
  // One after the other, so that a chain is never read before and signed after another has signed it.
  const alone = pLimit(1);

  /** Whether nothing new would be said by signing it again. After a change of the primary something would. */
  function isSigned({ chain, size, hash }: { chain: string; size: number; hash: Buffer }): boolean {
    const last = signed.get(chain);
    return last?.size === size && last.hash.equals(hash) && checkNote(last.signed, primary) === 'valid';
  }

  async function signStates(states: readonly ChainState[]): Promise<string[]> {
    const made: SignedCheckpoint[] = [];
    for (const state of states) {
      const refusal = refusalOf(signed.get(state.chain), state);
      if (refusal === undefined) refusals.delete(state.chain);
      else refuse(state, refusal);
      if (refusal !== undefined || isSigned(state)) continue;
      const checkpoint = parseCheckpoint(signCheckpoint(state, signers));
      if (checkpoint === undefined) refuse(state, 'its head is not one that can be signed');
      else made.push(checkpoint);
    }
    // What is not remembered is not given away.
    if (made.length > 0) await file?.append(made.map(({ note }) => note));
    for (const checkpoint of made) {
      signed.set(checkpoint.chain, checkpoint);
      logger.info({ checkpoint: checkpoint.note }, 'The history has a new checkpoint.');
    }
    return made.map(({ note }) => note);
  }

  function refuse({ chain, size, hash }: ChainState, why: string): void {
    refusals.set(chain, why);
    const { note } = signed.get(chain) ?? {};
    logger.error(
      { chain, found: { size, hash: hash.toString('hex') }, signed: note },
      `THE HISTORY IS NOT WHAT WAS SIGNED and gets no new checkpoint: ${why}.`,
    );
  }

  const asked = (chain: string) => ({ chain, size: signed.get(chain)?.size ?? 0 });

  async function listChanged(): Promise<string[]> {
    const gone = new Set(signed.keys());
    const changed: string[] = [];
    const pages = pagesOf<ChainHead>((last) => listHeads(db, { after: last?.chain ?? '', limit: batchSize }));
    for await (const heads of pages) {
      for (const { chain, sequence, hash } of heads) {
        gone.delete(chain);
        const isAnything = sequence > 0 || signed.has(chain);
        if (isAnything && !isSigned({ chain, size: sequence, hash })) changed.push(chain);
        else if (refusals.has(chain)) changed.push(chain);
      }
    }
    return [...changed, ...gone];
  }

  return {
    publicKeys: publicKeysText(signers),
    sign: (chain) =>
      alone(async () => {
        await signStates(await readChainStates(db, [asked(chain)]));
        const refusal = refusals.get(chain);
        if (refusal !== undefined) {
          const last = signed.get(chain);
          throw new Problem('history_altered', `The history is not what was signed before: ${refusal}.`, {
            members: { lastCheckpoint: last?.note },
          });
        }
        const { note } = signed.get(chain) ?? {};
        if (note === undefined) throw new Error(`no checkpoint of ${chain} was made`);
        return note;
      }),
    signChanged: () =>
      alone(async () => {
        const notes: string[] = [];
        for (const chains of chunksOf(await listChanged(), batchSize)) {
          notes.push(...(await signStates(await readChainStates(db, chains.map(asked)))));
        }
        return notes;
      }),
    refused: () => refusals.size,
  };
}

/** A chain as the database has it in one moment. */
interface ChainState extends Checkpoint {
  /** The hash of the event that the head names as last; null where there is no such event. */
  lastHash: Buffer | null;
  /** The hash of the event that was last when the chain was signed the time before; null where there is none. */
  hashAtSigned: Buffer | null;
}

/** @param signed which chains, each with the number of events that was signed last, or 0 */
async function readChainStates(db: Db, signed: ReadonlyArray<{ chain: string; size: number }>): Promise<ChainState[]> {
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

/**
 * Why a chain must not be signed as it is, in words for people; undefined where it may. What has been signed once is never
 * contradicted: neither by less, nor by the same number of events that end otherwise, nor by more that go back to others.
 * @param signed the last checkpoint of the chain
 */
function refusalOf(signed: Checkpoint | undefined, found: ChainState): string | undefined {
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
