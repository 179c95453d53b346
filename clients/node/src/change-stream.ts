import { createParser, type EventSourceMessage } from 'eventsource-parser';
import { createBackoff } from '../../../src/lib/backoff.ts';
import { startPeriodicTask } from '../../../src/lib/periodic-task.ts';
import { causeOf, openChanges, type Service } from './service.ts';

/** Follows `GET /v1/changes` until it is closed. */
export interface ChangeStream {
  /** Whether every change older than 5 s has arrived. Only then may cached answers be used. */
  isAlive(nowMs: number): boolean;
  /** Latchkey's time, by which keys expire, as far as it is known. */
  serverNowMs(nowMs: number): number;
  close(): Promise<void>;
}

interface ChangeStreamOptions {
  service: Service;
  /** Called with ids whose cached keys must be dropped. */
  onChange: (ids: string[]) => void;
  /** Called when changes may have been missed: all cached keys must be dropped. */
  onReset: () => void;
  /** Called when the stream connects or disconnects. */
  onStateChange: (isAlive: boolean, cause?: unknown) => void;
  /** Called each time the stream cannot be opened. */
  onTrouble: (error: Error) => void;
}

interface Heartbeat {
  /** Latchkey's time, by which keys expire. */
  at: string;
  /** All changes that were committed this long before the heartbeat was written have been sent. */
  behindMs: number;
  /** How long after the opening of the stream the heartbeat was written. */
  openMs: number;
}

/** Cached answers are not used if the changes are older than this. */
const silenceAllowedMs = 5_000;
/** If this many heartbeats in a row are late by more than this, the stream is opened again. */
const lagAllowedMs = silenceAllowedMs / 2;
const lateBeatsAllowed = 3;
const checkEveryMs = 500;
const delays = { minMs: 250, maxMs: 5_000 };
/** An event of Latchkey's is shorter. */
const longestEvent = 262_144;

export function followChanges({
  service,
  onChange,
  onReset,
  onStateChange,
  onTrouble,
}: ChangeStreamOptions): ChangeStream {
  const backoff = createBackoff(delays);
  let connection = new AbortController();
  let isConnected = false;
  /** All changes before this time have arrived (monotonic milliseconds). */
  let completeUntilMs = Number.NEGATIVE_INFINITY;
  let clockOffsetMs = Date.now() - performance.now();
  let wasAlive = false;
  let lateBeats = 0;
  let openedAtMs = performance.now();
  let receivedAtMs = openedAtMs;

  const isAlive = (nowMs: number) => isConnected && nowMs - completeUntilMs < silenceAllowedMs;

  function reportState(cause?: unknown): void {
    const alive = isAlive(performance.now());
    if (alive === wasAlive) return;
    wasAlive = alive;
    onStateChange(alive, cause);
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
    else if (event === 'down') lose(new Error('Latchkey itself does not receive changes at the moment'));
    else if (event === 'end') throw new Error(`Latchkey ended the stream: ${reason}`);
  }

  /**
   * A heartbeat describes the time at which it was written, and may have been on its way for long. It was written
   * `openMs` after the stream was opened, which was after the request was sent.
   */
  function beat({ at = '', behindMs = 0, openMs = 0 }: Partial<Heartbeat>): void {
    const nowMs = performance.now();
    const writtenAtMs = Math.min(nowMs, openedAtMs + openMs);
    lateBeats = nowMs - writtenAtMs > lagAllowedMs ? lateBeats + 1 : 0;
    if (lateBeats >= lateBeatsAllowed) throw new Error('changes from Latchkey arrive late');
    // Answers from before the stream was connected may be outdated.
    if (!isAlive(nowMs)) onReset();
    isConnected = true;
    if (lateBeats === 0) backoff.reset();
    completeUntilMs = Math.max(completeUntilMs, writtenAtMs - behindMs);
    if (!Number.isNaN(Date.parse(at))) clockOffsetMs = Date.parse(at) - writtenAtMs;
    reportState();
  }

  function lose(cause: unknown): void {
    isConnected = false;
    reportState(cause);
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

  /** Follows one connection. @throws the error that ended it */
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
      throw new Error('the stream was closed');
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
      reportState(new Error(`no heartbeat for ${silenceAllowedMs} ms`));
      const isSilent = performance.now() - receivedAtMs > silenceAllowedMs;
      if (isSilent) connection.abort(new Error('no heartbeat arrived in time'));
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
