import { createReadStream } from 'node:fs';
import { checkNote, type NoteVerifier } from '../crypto/signed-note.ts';
import { type Checkpoint, parseCheckpoint, splitNotes } from '../history/checkpoints/checkpoint.ts';
import { linesOf } from '../lib/lines.ts';
import { print, wrong } from './print.ts';

/** What a file of checkpoints has signed about each chain. Names what in it cannot be relied on. */
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
    // Each replica signs the same heads, so most notes come several times.
    const known = byChain.get(chain) ?? new Map<string, Checkpoint>();
    if (known.has(note)) continue;
    const state = checkNote(signed, verifiers);
    if (state === 'forged') wrong(`The signature under a checkpoint of ${chain} with ${size} events is wrong.`);
    if (state === 'unknown') counts.unknown += 1;
    if (state === 'valid') byChain.set(chain, known.set(note, { chain, size, hash }));
  }
  if (counts.torn > 0)
    print(`note    ${counts.torn} texts in ${file} are no whole checkpoints, as a crash leaves them.`);
  if (counts.unknown > 0) wrong(`${counts.unknown} checkpoints are signed by keys that were not given.`);
  return new Map([...byChain].map(([chain, notes]) => [chain, [...notes.values()]]));
}
