import { once } from 'node:events';
import { type IncomingMessage, request } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { createParser, type EventSourceMessage } from 'eventsource-parser';
import type { Acknowledged } from './ledger.ts';

/** What a follower of `GET /v1/changes` has received. Times are monotonic milliseconds. */
interface Received {
  kind: string;
  atMs: number;
  ids: string[];
  /** Of a heartbeat: every change up to this time has been reported. */
  completeUntilMs: number;
}

export interface FollowedChanges {
  received: Received[];
  close(): void;
}

interface EventData {
  ids?: string[];
  behindMs?: number;
  openMs?: number;
}

const reconnectMs = 250;

/** Follows the stream and opens it again when it ends. */
export function followChanges(url: string, token: string): FollowedChanges {
  const closing = new AbortController();
  const { signal } = closing;
  const received: Received[] = [];

  async function followOnce(): Promise<void> {
    const openedAtMs = performance.now();
    const headers = { authorization: `Bearer ${token}` };
    const sent = request(`${url}/v1/changes`, { agent: false, headers, signal }).end();
    const [response] = (await once(sent, 'response')) as [IncomingMessage];
    const parser = createParser({
      onEvent({ event = '', data }: EventSourceMessage) {
        const { ids = [], behindMs = 0, openMs = 0 } = JSON.parse(data) as EventData;
        const atMs = performance.now();
        const completeUntilMs = event === 'heartbeat' ? Math.min(atMs, openedAtMs + openMs) - behindMs : 0;
        received.push({ kind: event, atMs, ids, completeUntilMs });
      },
    });
    if (response.statusCode !== 200) sent.destroy();
    else for await (const chunk of response.setEncoding('utf8')) parser.feed(chunk as string);
  }

  const follow = async () => {
    while (!signal.aborted) {
      await followOnce().catch(() => undefined);
      await delay(reconnectMs, undefined, { signal }).catch(() => undefined);
    }
  };
  void follow();
  return { received, close: () => closing.abort() };
}

/** They change no verdict that a backend may have: the old key works on, and the new one is unknown. */
const unfollowed = ['partner.created', 'key.created', 'key.rotated'];
/** These events make a follower discard what it has cached. */
const discarding = ['hello', 'reset'];

/**
 * Acknowledged changes of which the follower never learned, or only after a heartbeat that claimed to be beyond them.
 * @returns a line for each
 */
export function unreported({ received }: FollowedChanges, acknowledged: readonly Acknowledged[]): string[] {
  return acknowledged.flatMap(({ action, id, sentAtMs, acknowledgedAtMs }) => {
    if (unfollowed.includes(action)) return [];
    const report = received.find(
      ({ kind, atMs, ids }) => atMs >= sentAtMs && (discarding.includes(kind) || ids.includes(id)),
    );
    const claim = received.find(({ completeUntilMs }) => completeUntilMs > acknowledgedAtMs);
    if (report === undefined) return [`${action} of ${id} was not reported to a follower`];
    if (claim !== undefined && claim.atMs < report.atMs) {
      return [`${action} of ${id} was reported ${Math.round(report.atMs - claim.atMs)} ms after a heartbeat beyond it`];
    }
    return [];
  });
}

/** The longest time between two heartbeats within a span. */
export function longestSilenceMs({ received }: FollowedChanges, fromMs: number, untilMs: number): number {
  const beats = received.filter(({ kind }) => kind === 'heartbeat').map(({ atMs }) => atMs);
  return longestGapMs(beats, fromMs, untilMs);
}

/** The longest part of the span without any of these times, which are in order. */
export function longestGapMs(timesMs: readonly number[], fromMs: number, untilMs: number): number {
  const within = timesMs.filter((timeMs) => timeMs > fromMs && timeMs < untilMs);
  let [longest, lastMs] = [0, fromMs];
  for (const timeMs of [...within, untilMs]) {
    longest = Math.max(longest, timeMs - lastMs);
    lastMs = timeMs;
  }
  return longest;
}
