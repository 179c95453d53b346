import type { FastifyBaseLogger } from 'fastify';
import pLimit from 'p-limit';
import { Problem } from '../core/errors.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { checkNote } from '../crypto/signed-note.ts';
import type { Db } from '../db/client.ts';
import {
  checkpointSigners,
  parseCheckpoint,
  publicKeysText,
  type SignedCheckpoint,
  signCheckpoint,
} from './checkpoint.ts';
import type { CheckpointFile } from './checkpoint-file.ts';
import { refusalOf } from './checkpoint-policy.ts';
import { type ChainState, readChainStates } from './checkpoint-store.ts';
import { listHeads } from './store.ts';

/** Signs the heads of chains, and never one that contradicts what it has signed before. */
export interface Checkpoints {
  /** The public keys for whoever checks a checkpoint; see `publicKeysText`. */
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
    for (let after = '', isLast = false; !isLast; ) {
      const heads = await listHeads(db, { after, limit: batchSize });
      for (const { chain, sequence, hash } of heads) {
        gone.delete(chain);
        const isAnything = sequence > 0 || signed.has(chain);
        if (isAnything && !isSigned({ chain, size: sequence, hash })) changed.push(chain);
        else if (refusals.has(chain)) changed.push(chain);
      }
      after = heads.at(-1)?.chain ?? '';
      isLast = heads.length < batchSize;
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
        const chains = await listChanged();
        const notes: string[] = [];
        for (let from = 0; from < chains.length; from += batchSize) {
          const states = await readChainStates(db, chains.slice(from, from + batchSize).map(asked));
          notes.push(...(await signStates(states)));
        }
        return notes;
      }),
    refused: () => refusals.size,
  };
}
