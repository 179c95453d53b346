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

/** Signs checkpoints periodically, appends them to the file and sends them to the configured URL. */
export interface Checkpointing {
  checkpoints: Checkpoints;
  /** Signs changed chains now and then periodically. Never fails. */
  start(): void;
  /** Signs and sends one last time. */
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

/** The delay after a failed round. */
const retryAfterMs = 5_000;

/** Keeps the shutdown short; unsent checkpoints are still in the log and in the file. */
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
      'CHECKPOINT_FILE contains incomplete checkpoints, or checkpoints of keys that are not in the keyring.',
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
      logger.warn({ err }, 'Checkpoints could not be signed. Latchkey will retry.');
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
      // If the task never started, the service did not start, and there is nothing to sign.
      if (task !== undefined) await round({ withinMs: lastSendWithinMs });
      await file?.close();
    },
  };
}

/** Sends checkpoints to a server that this machine cannot make forget them. */
interface CheckpointDelivery {
  /**
   * Sends these notes and those that failed before. Only the newest note of each chain is kept: it covers all before
   * it. Never throws; what fails is sent with the next call.
   */
  send(notes: readonly string[], limits?: { withinMs?: number; signal?: AbortSignal }): Promise<void>;
}

const sendWithinMs = 5_000;
const notesAtOnce = 100;

/** @param url its credentials become HTTP Basic authentication; only its host is logged */
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
    if (!response.ok) throw new Error(`the server answered with ${response.status}`);
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
            'Checkpoints could not be sent. Latchkey will send them with the next ones.',
          );
          return;
        }
        for (const [chain, note] of batch) if (waiting.get(chain) === note) waiting.delete(chain);
        logger.debug({ checkpoints: batch.length }, 'Checkpoints were sent.');
      }
    },
  };
}

/** The checkpoint file cannot be used. The message says why and what to do. */
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
        `CHECKPOINT_FILE ${file}: the checkpoint of ${forged.chain} with ${forged.size} events has a wrong signature. ` +
          'Somebody changed the file. Keep it as evidence, find out who, and restore the file from a copy.',
      );
    }
    let separator = endsInLine ? '\n\n' : '\n';
    return {
      remembered,
      torn,
      unknownKeys: states.filter((state) => state === 'unknown').length,
      async append(notes) {
        const text = separator + notes.join('\n');
        // Separates the next notes from what a failed write may have left behind.
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
    // An append-only file (chattr +a) rejects chmod, so it is called only if needed.
    const stats = await handle.stat();
    if (stats.isFile() && (stats.mode & 0o777) !== fileMode) await handle.chmod(fileMode);
    return handle;
  } catch (cause) {
    throw new CheckpointFileError(
      `CHECKPOINT_FILE ${file} cannot be written (${cause instanceof Error ? cause.message : String(cause)}). ` +
        'Create its folder and let the service write to it.',
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
