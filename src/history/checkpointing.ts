import type { FastifyBaseLogger } from 'fastify';
import type { Keyring } from '../crypto/keyring.ts';
import type { Db } from '../db/client.ts';
import { minuteMs } from '../lib/durations.ts';
import { type PeriodicTask, startPeriodicTask } from '../lib/periodic-task.ts';
import { checkpointSigners } from './checkpoint.ts';
import { createCheckpointDelivery } from './checkpoint-delivery.ts';
import { openCheckpointFile } from './checkpoint-file.ts';
import { type Checkpoints, createCheckpoints } from './checkpoints.ts';

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

  async function round(limits: { withinMs?: number; signal?: AbortSignal }): Promise<void> {
    try {
      const notes = await checkpoints.signChanged();
      await delivery?.send(notes, limits);
    } catch (err) {
      logger.warn({ err }, 'Checkpoints could not be signed; this is tried again.');
    }
  }

  return {
    checkpoints,
    start() {
      task ??= startPeriodicTask({ everyMs, immediately: true, run: (signal) => round({ signal }) });
    },
    async close() {
      await task?.close();
      // Where it has never begun, the service did not start, and nothing was done.
      if (task !== undefined) await round({ withinMs: lastSendWithinMs });
      await file?.close();
    },
  };
}
