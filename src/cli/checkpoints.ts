import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { checkNote, type NoteVerifier } from '../crypto/signed-note.ts';
import { type Checkpoint, parseCheckpoint, parsePublicKeys, splitNotes } from '../history/checkpoints/checkpoint.ts';
import { linesOf } from '../lib/lines.ts';
import { counted, print, wrong } from './print.ts';

/** Reads the valid checkpoints of a file, by chain. Prints which others are in it. */
export async function readCheckpoints(
  file: string,
  verifiers: readonly NoteVerifier[],
): Promise<ReadonlyMap<string, readonly Checkpoint[]>> {
  const byChain = new Map<string, Map<string, Checkpoint>>();
  const counts = { torn: 0, unknown: 0 };
  for await (const note of splitNotes(linesOf(createReadStream(file) as AsyncIterable<Buffer>))) {
    const checkpoint = parseCheckpoint(note);
    if (checkpoint === undefined) {
      counts.torn += 1;
      continue;
    }
    const { chain, size, hash, signed } = checkpoint;
    // Each replica signs the same heads, so most notes appear several times.
    const known = byChain.get(chain) ?? new Map<string, Checkpoint>();
    if (known.has(note)) continue;
    const state = checkNote(signed, verifiers);
    if (state === 'forged') wrong(`The signature of a checkpoint of ${chain} with ${size} events is invalid.`);
    if (state === 'unknown') counts.unknown += 1;
    if (state === 'valid') byChain.set(chain, known.set(note, { chain, size, hash }));
  }
  if (counts.torn > 0)
    print(`note    ${counts.torn} texts in ${file} are not complete checkpoints. A crash can leave such texts.`);
  if (counts.unknown > 0)
    wrong(`${counted(counts.unknown, 'checkpoint is', 'checkpoints are')} signed with other keys than the given ones.`);
  return new Map([...byChain].map(([chain, notes]) => [chain, [...notes.values()]]));
}

/** The public keys in a saved reply of /.well-known/latchkey-history-key. */
export async function readPublicKeys(file: string): Promise<NoteVerifier[]> {
  const verifiers = parsePublicKeys(await readFile(file, 'utf8'));
  if (verifiers.length > 0) return verifiers;
  throw new Error(`${file} contains no public key. Save the reply of /.well-known/latchkey-history-key in it.`);
}
