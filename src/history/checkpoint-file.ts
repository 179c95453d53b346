import { createReadStream } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { checkNote, type NoteVerifier } from '../crypto/signed-note.ts';
import { parseCheckpoint, type SignedCheckpoint, splitNotes } from './checkpoint.ts';
import { linesOf } from './lines.ts';

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

/** The file cannot be used. The message says why and what to do. */
export class CheckpointFileError extends Error {
  override readonly name = 'CheckpointFileError';
}

const mode = 0o600;

/** @throws CheckpointFileError */
export async function openCheckpointFile(file: string, verifiers: readonly NoteVerifier[]): Promise<CheckpointFile> {
  const handle = await openToAppend(file);
  try {
    const { size } = await handle.stat();
    const { newest, torn, endsInLine } = await readNewest(file, size);
    const remembered = [...newest.values()];
    const states = remembered.map((checkpoint) => checkNote(checkpoint.signed, verifiers));
    const forged = remembered[states.indexOf('forged')];
    if (forged !== undefined) {
      throw new CheckpointFileError(
        `CHECKPOINT_FILE ${file}: the signature under the checkpoint of ${forged.chain} with ${forged.size} events is wrong. ` +
          'Somebody has changed the file: find out who, keep it, and restore it from a copy.',
      );
    }
    let separator = endsInLine ? '\n\n' : '\n';
    return {
      remembered,
      torn,
      unknownKeys: states.filter((state) => state === 'unknown').length,
      async append(notes) {
        const text = separator + notes.join('\n');
        // Whatever a failed write has left behind is torn, and the next one must not be taken for its end.
        separator = '\n\n';
        await handle.appendFile(text);
        await handle.datasync();
        separator = '\n';
      },
      close: () => handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function openToAppend(file: string): Promise<FileHandle> {
  try {
    const handle = await open(file, 'a', mode);
    // Where the file system lets a file only grow (chattr +a) not even this would be allowed, so only where it is needed.
    const stats = await handle.stat();
    if (stats.isFile() && (stats.mode & 0o777) !== mode) await handle.chmod(mode);
    return handle;
  } catch (cause) {
    throw new CheckpointFileError(
      `CHECKPOINT_FILE ${file} cannot be written (${cause instanceof Error ? cause.message : String(cause)}). ` +
        "Its folder must be there and be the service's to write to.",
      { cause },
    );
  }
}

async function readNewest(file: string, size: number) {
  const newest = new Map<string, SignedCheckpoint>();
  let torn = 0;
  let last: number | undefined;
  async function* chunks(): AsyncGenerator<Buffer> {
    if (size === 0) return;
    for await (const chunk of createReadStream(file, { end: size - 1 }) as AsyncIterable<Buffer>) {
      last = chunk.at(-1);
      yield chunk;
    }
  }
  for await (const note of splitNotes(linesOf(chunks()))) {
    const checkpoint = parseCheckpoint(note);
    if (checkpoint === undefined) torn += 1;
    else if (checkpoint.size >= (newest.get(checkpoint.chain)?.size ?? 0)) newest.set(checkpoint.chain, checkpoint);
  }
  return { newest, torn, endsInLine: last !== undefined && last !== 0x0a };
}
