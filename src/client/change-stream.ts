import { createParser, type EventSourceMessage } from 'eventsource-parser';
import { createBackoff } from '../lib/backoff.ts';
import { startPeriodicTask } from '../lib/periodic-task.ts';
import { causeOf, openChanges, type Service } from './service.ts';

/** `GET /v1/changes`, for as long as it is open. */
export interface ChangeStream {
  /** Whether every change of up to 5 s ago has arrived. Only then may anything be answered from memory. */
  isAlive(nowMs: number): boolean;
  /** The time by which keys expire: Latchkey's, as far as it is known. */
  serverNowMs(nowMs: number): number;
  close(): Promise<void>;
}

interface ChangeStreamOptions {
  service: Service;
  /** Called with the ids whose dependents have to be forgotten. */
  onChange: (ids: string[]) => void;
  /** Called where changes may have been missed: everything has to be forgotten. */
  onReset: () => void;
  /** Called when it begins and ceases to be alive. */
  onTurn: (isAlive: boolean, cause?: unknown) => void;
  /** Called each time when it cannot be opened. */
  onTrouble: (error: Error) => void;
}

interface Heartbeat {
  /** The time by which keys expire. */
  at: string;
  /** All that was committed so long before it was written has been sent. */
  behindMs: number;
  /** How long after the opening of the stream it was written. */
  openMs: number;
}

/** Nothing that is older than this is answered from memory. */
const silenceAllowedMs = 5_000;
/** A stream whose heartbeats are late by more than this, so many times in a row, is opened again. */
const lagAllowedMs = silenceAllowedMs / 2;
const lateBeatsAllowed = 3;
const checkEveryMs = 500;
const delays = { minMs: 250, maxMs: 5_000 };
/** An event of Latchkey's is shorter. */
const longestEvent = 262_144;

export function followChanges({ service, onChange, onReset, onTurn, onTrouble }: ChangeStreamOptions): ChangeStream {
  const backoff = createBackoff(delays);
  let connection = new AbortController();
  let isConnected = false;
  /** All that was changed before this has arrived; monotonic milliseconds. */
  let completeUntilMs = Number.NEGATIVE_INFINITY;
  let clockOffsetMs = Date.now() - performance.now();
  let wasAlive = false;
  let lateBeats = 0;
  let openedAtMs = performance.now();
  let receivedAtMs = openedAtMs;

  const isAlive = (nowMs: number) => isConnected && nowMs - completeUntilMs < silenceAllowedMs;

  function turn(cause?: unknown): void {
    const alive = isAlive(performance.now());
    if (alive === wasAlive) return;
    wasAlive = alive;
    onTurn(alive, cause);
  }

  function handle({ event, data }: EventSourceMessage): void {
    const {
      ids = [],
      reason = '',
      ...heartbeat
    } = JSON.parse(data) as Partial<Heartbeat> & {
      ids?: string[];
      reason?: string;
    };
    if (event === 'change') onChange(ids);
    else if (event === 'heartbeat') beat(heartbeat);
    else if (event === 'reset' || event === 'hello') onReset();
    else if (event === 'down') lose(new Error('Latchkey itself does not receive changes now'));
    else if (event === 'end') throw new Error(`Latchkey has ended the stream: ${reason}`);
  }

  /**
   * A heartbeat says what was true when it was written, and may have been on its way for long. It was written `openMs`
   * after the stream was opened, and that was after the request for it was sent.
   */
  function beat({ at = '', behindMs = 0, openMs = 0 }: Partial<Heartbeat>): void {
    const nowMs = performance.now();
    const writtenAtMs = Math.min(nowMs, openedAtMs + openMs);
    lateBeats = nowMs - writtenAtMs > lagAllowedMs ? lateBeats + 1 : 0;
    if (lateBeats >= lateBeatsAllowed) throw new Error('what Latchkey sends arrives late');
    // Before it was alive, answers were kept that no change would have removed.
    if (!isAlive(nowMs)) onReset();
    isConnected = true;
    if (lateBeats === 0) backoff.reset();
    completeUntilMs = Math.max(completeUntilMs, writtenAtMs - behindMs);
    if (!Number.isNaN(Date.parse(at))) clockOffsetMs = Date.parse(at) - writtenAtMs;
    turn();
  }

  function lose(cause: unknown): void {
    isConnected = false;
    turn(cause);
  }

  async function open(closing: AbortSignal): ReturnType<typeof openChanges> {
    connection = new AbortController();
    openedAtMs = performance.now();
    receivedAtMs = openedAtMs;
    lateBeats = 0;
    try {
      return await openChanges(service, connection.signal);
    } catch (error) {
      if (!closing.aborted) onTrouble(error as Error);
      throw error;
    }
  }

  /** Follows one connection. Throws what ended it. */
  async function follow(closing: AbortSignal): Promise<never> {
    const parser = createParser({
      maxBufferSize: longestEvent,
      onEvent: handle,
      onError(error) {
        if (error.type === 'max-buffer-size-exceeded') throw error;
      },
    });
    try {
      for await (const text of await open(closing)) {
        receivedAtMs = performance.now();
        parser.feed(text);
      }
      throw new Error('the stream has ended');
    } finally {
      connection.abort();
    }
  }

  const following = startPeriodicTask({
    run: follow,
    everyMs: backoff.nextMs,
    immediately: true,
    onError: (error) => lose(causeOf(error)),
  });

  /** A connection can be dead without an error. */
  const watching = startPeriodicTask({
    run() {
      turn(new Error(`no heartbeat for ${silenceAllowedMs} ms`));
      const isSilent = performance.now() - receivedAtMs > silenceAllowedMs;
      if (isSilent) connection.abort(new Error('it was silent for too long'));
    },
    everyMs: checkEveryMs,
  });

  return {
    isAlive,
    serverNowMs: (nowMs) => nowMs + clockOffsetMs,
    async close() {
      // Its owner need not be notified.
      isConnected = false;
      wasAlive = false;
      const closed = [following.close(), watching.close()];
      connection.abort();
      await Promise.all(closed);
    },
  };
}
