import { createReadStream } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { FastifyBaseLogger } from 'fastify';
import type { Keyring } from '../../crypto/keyring.ts';
import { checkNote, type NoteVerifier } from '../../crypto/signed-note.ts';
import type { Db } from '../../database/client.ts';
import { chunksOf } from '../../lib/batches.ts';
import { minuteMs } from '../../lib/durations.ts';
import { linesOf } from '../../lib/lines.ts';
import { type PeriodicTask, startPeriodicTask } from '../../lib/periodic-task.ts';
import { checkpointSigners, parseCheckpoint, type SignedCheckpoint, splitNotes } from './checkpoint.ts';
import { type CheckpointFile, type Checkpoints, createCheckpoints } from './signing.ts';

/** Signs by the clock what requests do not ask for, remembers it, and sends it away. */
export interface Checkpointing {
  checkpoints: Checkpoints;
  /** Signs what has changed at once and then every now and then. Never fails. */
  start(): void;
  /** Signs and sends a last time. */
  close(): Promise<void>;
}

interface CheckpointingOptions {
  db: Db;
  keyring: Keyring;
  file?: string | undefined;
  url?: string | undefined;
  everyMs?: number;
  logger: Pick<FastifyBaseLogger, 'debug' | 'info' | 'warn' | 'error'>;
}

/** After a round that failed, such as one at a start that takes long. */
const retryAfterMs = 5_000;

/** At the end there is little time, and what does not arrive is in the log and in the file. */
const lastSendWithinMs = 1_500;

/** @throws CheckpointFileError */
export async function openCheckpointing(options: CheckpointingOptions): Promise<Checkpointing> {
  const { db, keyring, url, everyMs = minuteMs, logger } = options;
  const verifiers = checkpointSigners(keyring);
  const file = options.file === undefined ? undefined : await openCheckpointFile(options.file, verifiers);
  if (file !== undefined && file.torn + file.unknownKeys > 0) {
    const { torn, unknownKeys } = file;
    logger.warn(
      { torn, unknownKeys },
      'CHECKPOINT_FILE has texts that are no checkpoints, or of keys that are not here.',
    );
  }
  const checkpoints = createCheckpoints({ db, keyring, file, logger });
  const delivery = url === undefined ? undefined : createCheckpointDelivery(url, logger);
  let task: PeriodicTask | undefined;
  let hasFailed = false;

  async function round(limits: { withinMs?: number; signal?: AbortSignal }): Promise<void> {
    try {
      const notes = await checkpoints.signChanged();
      await delivery?.send(notes, limits);
      hasFailed = false;
    } catch (err) {
      hasFailed = true;
      logger.warn({ err }, 'Checkpoints could not be signed; this is tried again.');
    }
  }

  return {
    checkpoints,
    start() {
      task ??= startPeriodicTask({
        everyMs: () => (hasFailed ? Math.min(retryAfterMs, everyMs) : everyMs),
        immediately: true,
        run: (signal) => round({ signal }),
      });
    },
    async close() {
      await task?.close();
      // Where it has never begun, the service did not start, and nothing was done.
      if (task !== undefined) await round({ withinMs: lastSendWithinMs });
      await file?.close();
    },
  };
}

/** Takes checkpoints to where nobody on this machine can take them back. */
export interface CheckpointDelivery {
  /**
   * Sends these, and what could not be sent before. Of a chain only its newest one waits: it speaks for all before it.
   * Never throws: what does not arrive waits for the next time.
   */
  send(notes: readonly string[], limits?: { withinMs?: number; signal?: AbortSignal }): Promise<void>;
  /** Chains whose newest checkpoint has not arrived. */
  waiting(): number;
}

const sendWithinMs = 5_000;
/** About 25 KB. */
const notesAtOnce = 100;

/** @param url credentials in it are sent as HTTP Basic authentication; nothing of it but its host is logged */
function createCheckpointDelivery(url: string, logger: Pick<FastifyBaseLogger, 'debug' | 'warn'>): CheckpointDelivery {
  const target = new URL(url);
  const credentials = `${decodeURIComponent(target.username)}:${decodeURIComponent(target.password)}`;
  const authorization =
    credentials === ':' ? {} : { authorization: `Basic ${Buffer.from(credentials).toString('base64')}` };
  target.username = '';
  target.password = '';
  const waiting = new Map<string, string>();

  async function post(notes: string[], signal: AbortSignal): Promise<void> {
    const response = await fetch(target, {
      method: 'POST',
      headers: { 'content-type': 'text/plain; charset=utf-8', ...authorization },
      body: notes.join('\n'),
      redirect: 'error',
      signal,
    });
    await response.body?.cancel();
    if (!response.ok) throw new Error(`it answered ${response.status}`);
  }

  return {
    async send(notes, { withinMs = sendWithinMs, signal } = {}) {
      for (const note of notes) waiting.set(parseCheckpoint(note)?.chain ?? '', note);
      const timeout = AbortSignal.timeout(withinMs);
      const end = signal === undefined ? timeout : AbortSignal.any([timeout, signal]);
      for (const batch of chunksOf([...waiting], notesAtOnce)) {
        try {
          await post(
            batch.map(([, note]) => note),
            end,
          );
        } catch (err) {
          const host = target.host;
          logger.warn(
            { err, host, waiting: waiting.size },
            'Checkpoints could not be sent; they are sent with the next.',
          );
          return;
        }
        for (const [chain, note] of batch) if (waiting.get(chain) === note) waiting.delete(chain);
        logger.debug({ checkpoints: batch.length }, 'Checkpoints were sent.');
      }
    },
    waiting: () => waiting.size,
  };
}

/** The file cannot be used. The message says why and what to do. */
export class CheckpointFileError extends Error {
  override readonly name = 'CheckpointFileError';
}

const fileMode = 0o600;

/** @throws CheckpointFileError */
async function openCheckpointFile(file: string, verifiers: readonly NoteVerifier[]): Promise<CheckpointFile> {
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
    const handle = await open(file, 'a', fileMode);
    // Where the file system lets a file only grow (chattr +a) not even this would be allowed, so only where it is needed.
    const stats = await handle.stat();
    if (stats.isFile() && (stats.mode & 0o777) !== fileMode) await handle.chmod(fileMode);
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
