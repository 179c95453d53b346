import { setTimeout as delay } from 'node:timers/promises';
import { Broken, connectTo, type Service, send } from './connections.ts';
import { createEventReader, type ServerEvent } from './event-lines.ts';
import { describeAnswer } from './trouble.ts';

/** Who keeps answers, and has to know when to forget them. */
export interface Forgetful {
  forget(ids: string[]): void;
  forgetAll(): void;
}

/** `GET /v1/changes`, for as long as it is open. */
export interface ChangeStream {
  /** Whether every change of up to 5 s ago has been heard. Only then may anything be answered from memory. */
  isAlive(nowMs: number): boolean;
  /** The time by which keys expire: Latchkey's, as far as it is known. */
  serverNowMs(nowMs: number): number;
  close(): Promise<void>;
}

interface ChangeStreamOptions {
  service: Service;
  forgetful: Forgetful;
  /** Told when it begins and ceases to be alive. */
  onTurn: (isAlive: boolean, cause?: unknown) => void;
  /** Called each time when it cannot be opened. */
  onTrouble: (error: Error) => void;
}

/** What a heartbeat tells. */
interface Beat {
  /** The time by which keys expire. */
  at: string;
  /** All that was committed so long before it was written has been told. */
  behindMs: number;
  /** How long after the opening of the stream it was written. */
  openMs: number;
}

/** The heartbeat limit: nothing that is older than this is answered from memory. */
export const silenceAllowedMs = 5_000;
/** A stream whose heartbeats lag behind by more than this, so many times in a row, is opened anew. */
const lagAllowedMs = silenceAllowedMs / 2;
const lateBeatsAllowed = 3;
const lookEveryMs = 500;
const leastDelayMs = 250;
const mostDelayMs = 5_000;

export function followChanges({ service, forgetful, onTurn, onTrouble }: ChangeStreamOptions): ChangeStream {
  const closing = new AbortController();
  let connection = new AbortController();
  let isHeard = false;
  /** All that was changed before this has been told; monotonic milliseconds. */
  let vouchedAtMs = Number.NEGATIVE_INFINITY;
  let clockOffsetMs = Date.now() - performance.now();
  let wasAlive = false;
  let failures = 0;
  let lateBeats = 0;
  let askedAtMs = performance.now();
  let heardAtMs = askedAtMs;

  const isAlive = (nowMs: number) => isHeard && nowMs - vouchedAtMs < silenceAllowedMs;

  function turn(cause?: unknown): void {
    const alive = isAlive(performance.now());
    if (alive === wasAlive) return;
    wasAlive = alive;
    onTurn(alive, cause);
  }

  function hear({ event, data }: ServerEvent): void {
    const told = JSON.parse(data) as { ids?: string[]; reason?: string } & Partial<Beat>;
    if (event === 'change') forgetful.forget(told.ids ?? []);
    else if (event === 'heartbeat') beat(told);
    else if (event === 'reset' || event === 'hello') forgetful.forgetAll();
    else if (event === 'down') lose(new Error('Latchkey itself does not hear of changes now'));
    else if (event === 'end') throw new Error(`Latchkey has ended the stream: ${told.reason ?? ''}`);
  }

  /**
   * It says what was true when it was written, and may have been on its way for long. It was written so long after the
   * stream was opened as Latchkey says, and the stream was opened after it was asked for.
   */
  function beat({ at = '', behindMs = 0, openMs = 0 }: Partial<Beat>): void {
    const nowMs = performance.now();
    const writtenAtMs = Math.min(nowMs, askedAtMs + openMs);
    lateBeats = nowMs - writtenAtMs > lagAllowedMs ? lateBeats + 1 : 0;
    if (lateBeats >= lateBeatsAllowed) throw new Error('what Latchkey tells arrives late');
    // Before it was alive, answers were kept that no change would have taken away.
    if (!isAlive(nowMs)) forgetful.forgetAll();
    isHeard = true;
    if (lateBeats === 0) failures = 0;
    vouchedAtMs = Math.max(vouchedAtMs, writtenAtMs - behindMs);
    if (!Number.isNaN(Date.parse(at))) clockOffsetMs = Date.parse(at) - writtenAtMs;
    turn();
  }

  function lose(cause: unknown): void {
    isHeard = false;
    turn(cause);
  }

  /** One connection's life. Throws what ended it. */
  async function listen(): Promise<never> {
    connection = new AbortController();
    const client = connectTo(service, { signal: connection.signal });
    askedAtMs = performance.now();
    heardAtMs = askedAtMs;
    lateBeats = 0;
    const read = createEventReader();
    const asked = { method: 'GET', path: '/v1/changes', headers: { accept: 'text/event-stream' } } as const;
    let refusedWith: number | undefined;
    let isOpen = false;
    try {
      await send(client, service, asked, {
        onHead(status, contentType) {
          isOpen = status === 200 && contentType.startsWith('text/event-stream');
          if (!isOpen) refusedWith = status;
        },
        onText(text) {
          // The beginning of a refusal says enough, and what is no stream may not end.
          if (refusedWith !== undefined) throw new Error(describeAnswer(refusedWith, text));
          heardAtMs = performance.now();
          for (const event of read(text)) hear(event);
        },
      });
      throw new Error(refusedWith === undefined ? 'the stream has ended' : describeAnswer(refusedWith, ''));
    } catch (error) {
      const cause = error instanceof Broken && refusedWith !== undefined ? error.cause : error;
      if (!isOpen && !closing.signal.aborted) onTrouble(cause as Error);
      throw error;
    } finally {
      await client.destroy();
    }
  }

  /** A connection can be dead without telling. */
  const watch = setInterval(() => {
    turn(new Error(`no heartbeat for ${silenceAllowedMs} ms`));
    if (performance.now() - heardAtMs > silenceAllowedMs) connection.abort();
  }, lookEveryMs).unref();

  const running = (async () => {
    while (!closing.signal.aborted) {
      await listen().catch((error: unknown) => lose(error instanceof Broken ? error.cause : error));
      const delayMs = Math.min(mostDelayMs, leastDelayMs * 2 ** failures++) * (0.5 + Math.random() / 2);
      await delay(delayMs, undefined, { signal: closing.signal, ref: false }).catch(() => undefined);
    }
  })();

  return {
    isAlive,
    serverNowMs: (nowMs) => nowMs + clockOffsetMs,
    async close() {
      clearInterval(watch);
      // Whoever closes it knows that it ceases.
      isHeard = false;
      wasAlive = false;
      closing.abort();
      connection.abort();
      await running;
    },
  };
}
