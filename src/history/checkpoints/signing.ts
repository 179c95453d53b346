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

/** Signs chain heads, but never one that contradicts an earlier checkpoint. */
export interface Checkpoints {
  /** The public keys that verify checkpoints; see `publicKeysText`. */
  publicKeys: string;
  /**
   * Signs the chain's current head.
   * @throws Problem `history_altered` if it contradicts an earlier checkpoint
   */
  sign(chain: string): Promise<string>;
  /**
   * Signs every chain that changed since its last checkpoint.
   * @returns the new notes
   */
  signChanged(): Promise<string[]>;
  /** The number of chains that currently contradict their last checkpoint. */
  refused(): number;
}

/** An append-only file of notes that outlives the process. */
export interface CheckpointFile {
  /** The last checkpoint of each chain when the file was opened. */
  remembered: SignedCheckpoint[];
  /** Number of incomplete notes, as a crash leaves behind. */
  torn: number;
  /**
   * Number of notes that no key of this keyring signed. Trusting them is safe: it can only make more chains be refused.
   */
  unknownKeys: number;
  /** Resolves when the notes are on disk. */
  append(notes: readonly string[]): Promise<void>;
  close(): Promise<void>;
}

interface CheckpointsOptions {
  db: Db;
  keyring: Keyring;
  /** Where checkpoints are kept; without it, in memory only. */
  file?: CheckpointFile | undefined;
  logger: Pick<FastifyBaseLogger, 'error' | 'info'>;
}

/** Heads read in one query. */
const headsAtOnce = 500;

/** Chains that are compared and signed before other work gets a turn: some milliseconds. */
const signedAtOnce = 100;

export function createCheckpoints({ db, keyring, file, logger }: CheckpointsOptions): Checkpoints {
  const signers = checkpointSigners(keyring);
  const primary = signers.slice(0, 1);
  const signed = new Map((file?.remembered ?? []).map((checkpoint) => [checkpoint.chain, checkpoint]));
  const refusals = new Map<string, string>();
  /** Checkpoints that the primary has signed. To verify the signature of every chain each minute would take too long. */
  const ofPrimary = new WeakSet<SignedCheckpoint>();
  // Serialized, so that no chain is signed from a state read before another signature.
  const oneAtATime = pLimit(1);

  /** Whether the last checkpoint already covers this state. After a rotation of the primary, a new one is due. */
  function isSigned({ chain, size, hash }: { chain: string; size: number; hash: Buffer }): boolean {
    const last = signed.get(chain);
    return last?.size === size && last.hash.equals(hash) && isOfPrimary(last);
  }

  function isOfPrimary(checkpoint: SignedCheckpoint): boolean {
    if (!ofPrimary.has(checkpoint) && checkNote(checkpoint.signed, primary) === 'valid') ofPrimary.add(checkpoint);
    return ofPrimary.has(checkpoint);
  }

  async function signStates(states: readonly ChainState[]): Promise<string[]> {
    const made: SignedCheckpoint[] = [];
    for (const state of states) {
      const refusal = refusalOf(signed.get(state.chain), state);
      if (refusal === undefined) refusals.delete(state.chain);
      else refuse(state, refusal);
      if (refusal !== undefined || isSigned(state)) continue;
      const checkpoint = parseCheckpoint(signCheckpoint(state, signers));
      if (checkpoint === undefined) refuse(state, 'its head cannot be signed');
      else made.push(checkpoint);
    }
    // A checkpoint is stored before it is returned.
    if (made.length > 0) await file?.append(made.map(({ note }) => note));
    for (const checkpoint of made) {
      signed.set(checkpoint.chain, checkpoint);
      ofPrimary.add(checkpoint);
      logger.info({ checkpoint: checkpoint.note }, 'The history has a new checkpoint.');
    }
    return made.map(({ note }) => note);
  }

  function refuse({ chain, size, hash }: ChainState, why: string): void {
    refusals.set(chain, why);
    const { note } = signed.get(chain) ?? {};
    logger.error(
      { chain, found: { size, hash: hash.toString('hex') }, signed: note },
      `THE HISTORY CONTRADICTS ITS LAST CHECKPOINT, so Latchkey does not sign it: ${why}. Run latchkey audit verify.`,
    );
  }

  const withSignedSize = (chain: string) => ({ chain, size: signed.get(chain)?.size ?? 0 });

  async function listChanged(): Promise<string[]> {
    const gone = new Set(signed.keys());
    const changed: string[] = [];
    const pages = pagesOf<ChainHead>((last) => listHeads(db, { after: last?.chain ?? '', limit: headsAtOnce }));
    for await (const heads of pages) {
      for (const { chain, sequence, hash } of heads) {
        gone.delete(chain);
        const isUnused = sequence === 0 && !signed.has(chain);
        const isDue = !isUnused && !isSigned({ chain, size: sequence, hash });
        if (isDue || refusals.has(chain)) changed.push(chain);
      }
    }
    return [...changed, ...gone];
  }

  return {
    publicKeys: publicKeysText(signers),
    sign: (chain) =>
      oneAtATime(async () => {
        await signStates(await readChainStates(db, [withSignedSize(chain)]));
        const refusal = refusals.get(chain);
        if (refusal !== undefined) {
          const last = signed.get(chain);
          throw new Problem('history_altered', `The history contradicts its last checkpoint: ${refusal}.`, {
            members: { lastCheckpoint: last?.note },
          });
        }
        const { note } = signed.get(chain) ?? {};
        if (note === undefined) throw new Error(`No checkpoint was made for ${chain}`);
        return note;
      }),
    signChanged: () =>
      oneAtATime(async () => {
        const notes: string[] = [];
        for (const chains of chunksOf(await listChanged(), signedAtOnce)) {
          notes.push(...(await signStates(await readChainStates(db, chains.map(withSignedSize)))));
        }
        return notes;
      }),
    refused: () => refusals.size,
  };
}

/** A chain's state in the database at one moment. */
interface ChainState extends Checkpoint {
  /** The hash of the event that the head names; null if that event is missing. */
  lastHash: Buffer | null;
  /** The hash of the event that the last checkpoint covers; null if there is none. */
  hashAtSigned: Buffer | null;
  /** The number of archived events. */
  archivedEvents: number;
}

/** @param signed the chains, each with the number of events of its last checkpoint, or 0 */
async function readChainStates(db: Db, signed: ReadonlyArray<{ chain: string; size: number }>): Promise<ChainState[]> {
  const { rows } = await sql<ChainState>`
    select asked.chain,
      coalesce(head.sequence, 0) as size,
      coalesce(head.hash, ${firstPreviousHash}) as hash,
      last.hash as "lastHash",
      at_signed.hash as "hashAtSigned",
      coalesce((select max(last_sequence) from history_archives where chain = asked.chain), 0) as "archivedEvents"
    from unnest(${signed.map(({ chain }) => chain)}::text[], ${signed.map(({ size }) => size)}::bigint[])
      as asked (chain, size)
    left join history_heads as head on head.chain = asked.chain
    left join history as last on last.chain = asked.chain and last.sequence = head.sequence
    left join history as at_signed on at_signed.chain = asked.chain and at_signed.sequence = asked.size`.execute(db);
  return rows;
}

/**
 * Why a chain must not be signed, in words; undefined if it may. A checkpoint is never contradicted: not by fewer
 * events, not by the same number with another end, and not by more events that grew from others.
 * @param signed the last checkpoint of the chain
 */
function refusalOf(signed: Checkpoint | undefined, found: ChainState): string | undefined {
  if (signed !== undefined && found.size < signed.size) {
    return `it has ${found.size} events, but ${signed.size} were signed: its tail was cut, or the database is an older backup`;
  }
  if (found.size > 0 && found.lastHash?.equals(found.hash) !== true) {
    return `its head counts ${found.size} events, but the last of them is missing or differs`;
  }
  if (signed !== undefined && signed.size > 0 && found.hashAtSigned === null && signed.size <= found.archivedEvents) {
    return (
      `its event ${signed.size}, the last signed one, is archived: verify the archives with this checkpoint ` +
      '(latchkey audit verify --archive … --checkpoint …), then start with a new CHECKPOINT_FILE'
    );
  }
  if (signed !== undefined && signed.size > 0 && found.hashAtSigned?.equals(signed.hash) !== true) {
    return `its event ${signed.size} differs from the signed one: it was rewritten, or continued from an older backup`;
  }
  return undefined;
}
