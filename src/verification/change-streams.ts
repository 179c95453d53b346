import type { ServerResponse } from 'node:http';
import type { FastifyBaseLogger } from 'fastify';
import type { ChangeFeed } from '../database/change-feed.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { Problem } from '../domain/errors.ts';
import type { AccessTokenPrincipal } from '../domain/principal.ts';
import { startPeriodicTask } from '../lib/periodic-task.ts';

/** Tells backends that keep answers which of them to forget, as Server-Sent Events. */
export interface ChangeStreams {
  /** @throws Problem `unavailable` where the service is stopping */
  requireOpen(): void;
  /** Writes events into a response whose headers are written, until one of the two sides ends it. */
  open(principal: AccessTokenPrincipal, response: ServerResponse): void;
  /** Ends all of them. */
  close(): void;
}

interface ChangeStreamsOptions {
  feed: ChangeFeed;
  clock: DatabaseClock;
  /** Whether a token that was changed may still follow. */
  mayStillFollow: (principal: AccessTokenPrincipal) => Promise<boolean>;
  logger: Pick<FastifyBaseLogger, 'info'>;
}

interface Stream {
  principal: AccessTokenPrincipal;
  response: ServerResponse;
  /** Ids that are not written yet. */
  waiting: Set<string>;
  /** Too many were waiting, or some were missed: one word says it all. */
  mustReset: boolean;
  /** When that was last written; monotonic milliseconds. */
  resetAtMs: number;
  isDown: boolean;
  /** Monotonic milliseconds. */
  openedAtMs: number;
  /** Since when the client has not taken what was written; monotonic milliseconds. */
  stuckSinceMs: number | undefined;
}

export const heartbeatEveryMs = 1_000;
/** What clients are asked to allow: longer silence than this, and nothing kept is sure to be right. */
export const silenceAllowedMs = 5_000;
/** Kept for a client that is slow; past it, it is told to forget everything. */
const idsWaiting = 1_000;
/** A client that has taken nothing for so long is given up. */
const stuckAllowedMs = 5_000;

type EndReason = 'stopping' | 'token_expired' | 'token_changed';

const answersDependOn = /^(key|partner|org)_/;

export function createChangeStreams(options: ChangeStreamsOptions): ChangeStreams {
  const { feed, clock } = options;
  const streams = new Set<Stream>();
  let isFlushing = false;
  let isClosed = false;

  feed.subscribe({
    changed(id, organizationId) {
      if (id.startsWith('token_')) recheck([...streams].filter(({ principal }) => principal.id === id));
      if (!answersDependOn.test(id)) return;
      for (const stream of streams) if (mayHear(stream, organizationId)) note(stream, id, organizationId);
      flushSoon();
    },
    restarted() {
      for (const stream of streams) stream.mustReset = true;
      flushSoon();
    },
  });

  function mayHear({ principal }: Stream, organizationId: string | null): boolean {
    return organizationId === null || principal.actsIn === null || principal.actsIn === organizationId;
  }

  /** An id without an organization may be anybody's, so it is not told; that something has changed is. */
  function note(stream: Stream, id: string, organizationId: string | null): void {
    if (organizationId === null || stream.waiting.size >= idsWaiting) stream.mustReset = true;
    else stream.waiting.add(id);
  }

  /** What one message of the database brings goes as one event. */
  function flushSoon(): void {
    if (isFlushing) return;
    isFlushing = true;
    process.nextTick(() => {
      isFlushing = false;
      for (const stream of streams) flush(stream);
    });
  }

  /** A reset goes at once, and then once a heartbeat, so that a flood of them does not make clients ask for all again and again. */
  function flush(stream: Stream, isBeat = false): void {
    const { response, waiting } = stream;
    if (response.writableNeedDrain) {
      stream.stuckSinceMs ??= performance.now();
      return;
    }
    stream.stuckSinceMs = undefined;
    if (stream.mustReset && (isBeat || performance.now() - stream.resetAtMs >= heartbeatEveryMs)) {
      stream.mustReset = false;
      stream.resetAtMs = performance.now();
      write(response, 'reset', {});
      // Among what was missed may be that a token was revoked.
      recheck([stream]);
    } else if (waiting.size > 0) write(response, 'change', { ids: [...waiting] });
    waiting.clear();
  }

  function beat(stream: Stream): void {
    const { principal, response } = stream;
    const { expiresAt } = principal;
    if (expiresAt !== null && expiresAt.getTime() <= clock.nowMs()) {
      end(stream, 'token_expired');
      return;
    }
    flush(stream, true);
    const { stuckSinceMs } = stream;
    if (stuckSinceMs !== undefined) {
      if (performance.now() - stuckSinceMs > stuckAllowedMs) response.destroy();
      return;
    }
    if (feed.isLive()) {
      const nowMs = performance.now();
      const behindMs = Math.max(0, Math.ceil(nowMs - feed.caughtUpAtMs));
      const openMs = Math.floor(nowMs - stream.openedAtMs);
      write(response, 'heartbeat', { at: new Date(clock.nowMs()).toISOString(), behindMs, openMs });
    } else if (stream.isDown) {
      // A comment: nothing is said, and whoever is in between sees that the connection is used.
      response.write(':\n\n');
    } else {
      write(response, 'down', {});
    }
    stream.isDown = !feed.isLive();
  }

  function end(stream: Stream, reason: EndReason): void {
    streams.delete(stream);
    write(stream.response, 'end', { reason });
    stream.response.end();
    options.logger.info({ callerId: stream.principal.id, reason }, 'A stream of changes was ended.');
  }

  function recheck(some: readonly Stream[]): void {
    for (const stream of some) {
      options.mayStillFollow(stream.principal).then(
        (may) => may || end(stream, 'token_changed'),
        () => end(stream, 'token_changed'),
      );
    }
  }

  const heartbeats = startPeriodicTask({
    everyMs: heartbeatEveryMs,
    run() {
      for (const stream of streams) beat(stream);
    },
  });

  return {
    requireOpen() {
      if (isClosed) throw new Problem('unavailable', 'The service is stopping.');
    },
    open(principal, response) {
      if (response.destroyed) return;
      const stream: Stream = {
        principal,
        response,
        waiting: new Set(),
        mustReset: false,
        resetAtMs: Number.NEGATIVE_INFINITY,
        isDown: false,
        openedAtMs: performance.now(),
        stuckSinceMs: undefined,
      };
      streams.add(stream);
      response.on('drain', () => flush(stream));
      response.on('close', () => streams.delete(stream));
      response.on('error', () => streams.delete(stream));
      response.write(`retry: ${heartbeatEveryMs}\n`);
      write(response, 'hello', { heartbeatMs: heartbeatEveryMs, silenceAllowedMs });
      beat(stream);
    },
    close() {
      isClosed = true;
      void heartbeats.close();
      for (const stream of streams) end(stream, 'stopping');
    },
  };
}

function write(response: ServerResponse, event: string, data: Record<string, unknown>): void {
  response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
}
