import type { ServerResponse } from 'node:http';
import type { FastifyBaseLogger } from 'fastify';
import type { ChangeFeed } from '../database/change-feed.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { Problem } from '../domain/errors.ts';
import type { AccessTokenPrincipal } from '../domain/principal.ts';
import { startPeriodicTask } from '../lib/periodic-task.ts';

/** Streams of Server-Sent Events that report to backends which cached verdicts to discard. */
export interface ChangeStreams {
  /** @throws Problem `unavailable` if the service is stopping */
  requireOpen(): void;
  /** Writes events to a response whose headers are sent, until either side ends it. */
  open(principal: AccessTokenPrincipal, response: ServerResponse): void;
  /** Ends all streams and rejects new ones. */
  close(): void;
}

interface ChangeStreamsOptions {
  feed: ChangeFeed;
  clock: DatabaseClock;
  /** Whether the access token still permits the stream. Called after the token was changed. */
  isStillAuthorized: (principal: AccessTokenPrincipal) => Promise<boolean>;
  logger: Pick<FastifyBaseLogger, 'info'>;
}

interface Stream {
  principal: AccessTokenPrincipal;
  response: ServerResponse;
  /** Ids that are not yet written. */
  pendingIds: Set<string>;
  /** Too many ids were pending, or changes were missed: write `reset` instead of ids. */
  mustReset: boolean;
  /** When `reset` was last written; monotonic milliseconds. */
  resetAtMs: number;
  isDown: boolean;
  /** Monotonic milliseconds. */
  openedAtMs: number;
  /** Since when the client has not read; monotonic milliseconds. Undefined: it reads. */
  stalledSinceMs: number | undefined;
}

export const heartbeatEveryMs = 1_000;
/** After a longer silence clients must not use cached verdicts. */
export const silenceAllowedMs = 5_000;
/** If more ids are pending for a slow client, it receives `reset` instead. */
const pendingIdsLimit = 1_000;
/** A client that reads nothing for this long is disconnected. */
const stallTimeoutMs = 5_000;

type EndReason = 'stopping' | 'token_expired' | 'token_changed';

const cachedVerdictId = /^(key|partner|org)_/;

/** Creates the streams and their heartbeat. */
export function createChangeStreams(options: ChangeStreamsOptions): ChangeStreams {
  const { feed, clock } = options;
  const streams = new Set<Stream>();
  let isFlushing = false;
  let isClosed = false;

  feed.subscribe({
    changed(id, organizationId) {
      if (id.startsWith('token_')) recheck([...streams].filter(({ principal }) => principal.id === id));
      if (!cachedVerdictId.test(id)) return;
      for (const stream of streams) if (isSubscribedTo(stream, organizationId)) enqueue(stream, id, organizationId);
      flushSoon();
    },
    restarted() {
      for (const stream of streams) stream.mustReset = true;
      flushSoon();
    },
  });

  function isSubscribedTo({ principal }: Stream, organizationId: string | null): boolean {
    return organizationId === null || principal.actsIn === null || principal.actsIn === organizationId;
  }

  /** An id without an organization may belong to any organization, so the stream gets `reset` and not the id. */
  function enqueue(stream: Stream, id: string, organizationId: string | null): void {
    if (organizationId === null || stream.pendingIds.size >= pendingIdsLimit) stream.mustReset = true;
    else stream.pendingIds.add(id);
  }

  /** Collects the ids that arrive in the same tick into one event. */
  function flushSoon(): void {
    if (isFlushing) return;
    isFlushing = true;
    process.nextTick(() => {
      isFlushing = false;
      for (const stream of streams) flush(stream);
    });
  }

  /** Writes at most one `reset` per heartbeat: each one makes the client verify all of its keys again. */
  function flush(stream: Stream, isHeartbeat = false): void {
    const { response, pendingIds } = stream;
    if (response.writableNeedDrain) {
      stream.stalledSinceMs ??= performance.now();
      return;
    }
    stream.stalledSinceMs = undefined;
    if (stream.mustReset && (isHeartbeat || performance.now() - stream.resetAtMs >= heartbeatEveryMs)) {
      stream.mustReset = false;
      stream.resetAtMs = performance.now();
      write(response, 'reset', {});
      // The missed changes may include a revocation of this token.
      recheck([stream]);
    } else if (pendingIds.size > 0) write(response, 'change', { ids: [...pendingIds] });
    pendingIds.clear();
  }

  function sendHeartbeat(stream: Stream): void {
    const { principal, response } = stream;
    const { expiresAt } = principal;
    if (expiresAt !== null && expiresAt.getTime() <= clock.nowMs()) {
      end(stream, 'token_expired');
      return;
    }
    flush(stream, true);
    const { stalledSinceMs } = stream;
    if (stalledSinceMs !== undefined) {
      if (performance.now() - stalledSinceMs > stallTimeoutMs) response.destroy();
      return;
    }
    if (feed.isLive()) {
      const nowMs = performance.now();
      const behindMs = Math.max(0, Math.ceil(nowMs - feed.caughtUpAtMs));
      const openMs = Math.floor(nowMs - stream.openedAtMs);
      write(response, 'heartbeat', { at: new Date(clock.nowMs()).toISOString(), behindMs, openMs });
    } else if (stream.isDown) {
      // An SSE comment keeps proxies from closing an idle connection.
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
    options.logger.info({ callerId: stream.principal.id, reason }, 'A change stream has ended.');
  }

  function recheck(some: readonly Stream[]): void {
    for (const stream of some) {
      options.isStillAuthorized(stream.principal).then(
        (may) => may || end(stream, 'token_changed'),
        () => end(stream, 'token_changed'),
      );
    }
  }

  const heartbeats = startPeriodicTask({
    everyMs: heartbeatEveryMs,
    run() {
      for (const stream of streams) sendHeartbeat(stream);
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
        pendingIds: new Set(),
        mustReset: false,
        resetAtMs: Number.NEGATIVE_INFINITY,
        isDown: false,
        openedAtMs: performance.now(),
        stalledSinceMs: undefined,
      };
      streams.add(stream);
      response.on('drain', () => flush(stream));
      response.on('close', () => streams.delete(stream));
      response.on('error', () => streams.delete(stream));
      response.write(`retry: ${heartbeatEveryMs}\n`);
      write(response, 'hello', { heartbeatMs: heartbeatEveryMs, silenceAllowedMs });
      sendHeartbeat(stream);
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
