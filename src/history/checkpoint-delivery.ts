import type { FastifyBaseLogger } from 'fastify';
import { parseCheckpoint } from './checkpoint.ts';

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
export function createCheckpointDelivery(
  url: string,
  logger: Pick<FastifyBaseLogger, 'debug' | 'warn'>,
): CheckpointDelivery {
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
      while (waiting.size > 0) {
        const batch = [...waiting].slice(0, notesAtOnce);
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
