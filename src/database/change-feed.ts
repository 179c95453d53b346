import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { sql } from 'kysely';
import pg from 'pg';
import { idSuffixPattern } from '../domain/ids.ts';
import { backoffMs, pause } from '../lib/backoff.ts';
import { abortable, within } from '../lib/deadline.ts';
import { createDeferred, type Deferred } from '../lib/deferred.ts';
import { createHealthSwitch } from '../lib/health-switch.ts';
import { packageVersion } from '../lib/package.ts';
import { startPeriodicTask } from '../lib/periodic-task.ts';
import type { Tx } from './client.ts';
import type { DatabaseClock } from './clock.ts';
import { socketOf } from './pg-internals.ts';
import { prepareSession } from './session.ts';

/** Called for every change, so that cached rows are dropped. */
export interface ChangeListener {
  /**
   * A row was changed or deleted.
   * @param organizationId null for a row of no organization
   */
  changed(id: string, organizationId: string | null): void;
  /** Changes may have been missed: drop everything. */
  restarted(): void;
}

/** Reports every change in the database by any process, and whether the reports are complete. */
export interface ChangeFeed {
  /** Every change that was committed before this time has been reported (monotonic milliseconds). */
  readonly caughtUpAtMs: number;
  /** False if changes may have been missed. A dead connection is noticed within 2 s. Then no cached row may be used. */
  isLive(): boolean;
  subscribe(listener: ChangeListener): void;
  close(): Promise<void>;
}

export interface ChangeFeedOptions {
  /** Sends a notification through the service's own connections. The feed must receive those. */
  notify: (channel: string, payload: string) => Promise<void>;
  /** Without a transaction pooler, which does not deliver notifications. */
  url: string;
  clock: DatabaseClock;
  /** Called with each new session before it listens. An error ends the session. */
  onSession?: (session: pg.ClientBase) => Promise<void>;
  /** Called when the change feed connects or disconnects. */
  onLiveChange?: (isLive: boolean, cause?: unknown) => void;
}

/** A changed row and its organization, as the triggers report them. */
export interface ChangeNotice {
  id: string;
  organizationId: string;
}

/** Notifies every replica when the transaction commits, for what no trigger reports. */
export async function notifyChanges(tx: Tx, notices: readonly ChangeNotice[]): Promise<void> {
  if (notices.length === 0) return;
  const payloads = notices.map(({ id, organizationId }) => `${id} ${organizationId}`);
  await sql`select pg_notify(${channel}, payload) from unnest(${payloads}::text[]) as payload`.execute(tx);
}

const channel = 'latchkey_changes';
const everything = '*';
/** Parses the payload of the trigger: a row's id and its organization's. Undefined for any other payload. */
const notice = new RegExp(`^(?:org|partner|key|token)_${idSuffixPattern}(?: org_${idSuffixPattern})?$`);
const heartbeatEveryMs = 500;
/**
 * Every so many heartbeats, one is sent through the service's own connections. This finds a listener behind a
 * transaction pooler, or connected to another database: both receive their own heartbeats, but not these.
 */
const heartbeatsPerProof = 10;
/** After a longer silence the feed counts as disconnected: a connection can be dead without an error. */
const silenceAllowedMs = 2_000;
const reconnect = { minMs: 500, maxMs: 500 };

/**
 * Listens on its own connection and reconnects until it is closed. Postgres delivers notifications in commit order, so
 * a heartbeat that comes back proves that all earlier notifications have arrived.
 */
export function followChanges(options: ChangeFeedOptions): ChangeFeed {
  const { clock, onSession, onLiveChange = () => undefined } = options;
  const sessionName = `latchkey changes ${packageVersion()} ${hostname()}`;
  const listeners: ChangeListener[] = [];
  const health = createHealthSwitch(onLiveChange);
  let caughtUpAtMs = Number.NEGATIVE_INFINITY;
  let isConnected = false;
  const isLive = () => isConnected && performance.now() - caughtUpAtMs < silenceAllowedMs;

  function report(cause?: unknown): void {
    const isStarting = health.isHealthy === undefined && cause === undefined && !isLive();
    if (!isStarting) health.set(isLive(), cause);
  }

  function receive(payload: string): void {
    if (payload === everything) for (const listener of listeners) listener.restarted();
    if (!notice.test(payload)) return;
    const [id = '', organizationId = null] = payload.split(' ', 2);
    for (const listener of listeners) listener.changed(id, organizationId);
  }

  /** Runs one connection until it ends. @throws the error that ended it, unless the feed was closed */
  async function listen(closing: AbortSignal): Promise<void> {
    const client = new pg.Client({
      connectionString: options.url,
      application_name: sessionName,
      connectionTimeoutMillis: silenceAllowedMs,
      query_timeout: silenceAllowedMs,
      keepAlive: true,
    });
    const connection = new AbortController();
    const { signal } = connection;
    const lose = (cause: unknown) => connection.abort(cause);
    closing.addEventListener('abort', lose, { once: true });
    client.on('error', lose);
    client.on('end', () => lose(new Error('the connection was closed')));

    const beats = new Map<string, Beat>();
    client.on('notification', ({ payload = '' }) => {
      const beat = beats.get(payload);
      if (beat === undefined) return receive(payload);
      caughtUpAtMs = Math.max(caughtUpAtMs, beat.sentAtMs);
      isConnected = true;
      beat.arrival.resolve();
      report();
    });
    const exchange = async (send: (beat: Beat) => Promise<void>) => {
      const beat = createBeat();
      beats.set(beat.payload, beat);
      try {
        await send(beat);
        await within(silenceAllowedMs, beat.arrival.promise, () => {
          throw new NotificationLost();
        });
      } finally {
        beats.delete(beat.payload);
      }
    };
    const sendThroughService = ({ payload }: Beat) => options.notify(channel, payload);
    try {
      await abortable(connect(client), signal);
      for (const listener of listeners) listener.restarted();
      await abortable(exchange(sendThroughService), signal);
      for (let number = 1; ; number++) {
        await pause(heartbeatEveryMs, signal);
        await abortable(
          exchange((beat) => sendBeat(client, beat)),
          signal,
        );
        if (number % heartbeatsPerProof !== 0) continue;
        // Not awaited: if the service's own connections are all busy, the feed may still work.
        exchange(sendThroughService).catch((error: unknown) => {
          if (error instanceof NotificationLost) lose(error);
        });
      }
    } catch (error) {
      if (!closing.aborted) throw error;
    } finally {
      isConnected = false;
      closing.removeEventListener('abort', lose);
      void client.end().catch(() => undefined);
      socketOf(client).destroy();
    }
  }

  async function connect(client: pg.Client): Promise<void> {
    await client.connect();
    await prepareSession(client);
    await onSession?.(client);
    await client.query(`listen ${channel}`);
  }

  async function sendBeat(client: pg.Client, { payload, sentAtMs }: Beat): Promise<void> {
    const { rows } = await client.query<{ now: Date }>('select clock_timestamp() as now, pg_notify($1, $2)', [
      channel,
      payload,
    ]);
    if (rows[0] !== undefined) clock.sample(rows[0].now.getTime(), sentAtMs, performance.now());
  }

  const watch = startPeriodicTask({ everyMs: heartbeatEveryMs, run: () => report() });
  const listening = startPeriodicTask({
    run: listen,
    immediately: true,
    everyMs: () => backoffMs(1, reconnect),
    onError: report,
  });
  return {
    get caughtUpAtMs() {
      return caughtUpAtMs;
    },
    isLive,
    subscribe: (listener) => void listeners.push(listener),
    async close() {
      await watch.close();
      await listening.close();
    },
  };
}

/** A message from the feed to itself, to check that messages arrive. */
interface Beat {
  payload: string;
  /** Monotonic milliseconds. */
  sentAtMs: number;
  arrival: Deferred<void>;
}

function createBeat(): Beat {
  return { payload: `beat ${randomUUID()}`, sentAtMs: performance.now(), arrival: createDeferred() };
}

/** A heartbeat was sent and did not arrive in time. */
class NotificationLost extends Error {
  constructor() {
    super(
      'notifications do not arrive. LISTEN_DATABASE_URL must lead to the same database, without a transaction pooler',
    );
  }
}
