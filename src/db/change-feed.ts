import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { DatabaseClock } from './clock.ts';

/** What somebody who keeps copies of records is told. */
export interface ChangeListener {
  /** The record with this id was changed or deleted. */
  changed(id: string): void;
  /** What came before may have been missed: forget everything. */
  restarted(): void;
}

/** Tells of every change in the database, whoever made it, and whether it can be relied on right now. */
export interface ChangeFeed {
  /** Every change that was committed before this moment has been told (monotonic milliseconds). */
  readonly caughtUpAtMs: number;
  /** False as soon as changes might be missed; then nothing may be answered from a copy. */
  isLive(): boolean;
  subscribe(listener: ChangeListener): void;
  close(): Promise<void>;
}

export interface ChangeFeedOptions {
  /** A direct connection: a pooler that hands out connections by transaction does not deliver notifications. */
  url: string;
  clock: DatabaseClock;
  /** Told when the feed begins and ceases to be live. */
  onTurn?: (isLive: boolean, cause?: Error) => void;
}

const channel = 'latchkey_changes';
const everything = '*';
const heartbeatEveryMs = 500;
/** Longer silence than this and the feed is not live: a connection can be dead without telling. */
const silenceAllowedMs = 2_000;
const reconnectAfterMs = 250;

/**
 * Listens on a connection of its own, and reconnects for as long as it is open. Postgres delivers notifications in the
 * order of commits, so a heartbeat that comes back through the channel proves that all before it has arrived.
 */
export function followChanges(options: ChangeFeedOptions): ChangeFeed {
  const { clock, onTurn } = options;
  const listeners: ChangeListener[] = [];
  const closing = new AbortController();
  let caughtUpAtMs = Number.NEGATIVE_INFINITY;
  let isConnected = false;
  let wasLive: boolean | undefined;
  const isLive = () => isConnected && performance.now() - caughtUpAtMs < silenceAllowedMs;
  const turn = (cause?: Error) => {
    const isStarting = wasLive === undefined && cause === undefined && !isLive();
    if (isLive() === wasLive || isStarting) return;
    wasLive = isLive();
    onTurn?.(wasLive, cause);
  };

  const connection = {
    connectionString: options.url,
    application_name: 'latchkey changes',
    connectionTimeoutMillis: silenceAllowedMs,
    query_timeout: silenceAllowedMs,
    keepAlive: true,
  };

  /** One connection's life. Resolves with what ended it. */
  async function listen(): Promise<Error> {
    const client = new pg.Client(connection);
    const lost = new Promise<Error>((resolve) => {
      client.on('error', resolve);
      client.on('end', () => resolve(new Error('the connection has ended')));
      closing.signal.addEventListener('abort', () => resolve(new Error('the service is stopping')), { once: true });
    });
    let awaited: Beat | undefined;
    client.on('notification', ({ payload = '' }) => {
      if (payload === awaited?.payload) {
        caughtUpAtMs = awaited.sentAtMs;
        isConnected = true;
        awaited.arrive();
        turn();
      } else if (payload === everything) for (const listener of listeners) listener.restarted();
      else for (const listener of listeners) listener.changed(payload);
    });
    const orLost = <Value>(promise: Promise<Value>) => Promise.race([promise, rejected(lost)]);
    try {
      await orLost(client.connect().then(() => client.query(`listen ${channel}`)));
      for (const listener of listeners) listener.restarted();
      for (let send = sendFromElsewhere; ; send = (beat) => sendBeat(client, beat)) {
        const beat = createBeat();
        awaited = beat;
        await orLost(send(beat));
        await orLost(Promise.race([beat.arrived, silence()]));
        await orLost(delay(heartbeatEveryMs, undefined, { ref: false }));
      }
    } catch (error) {
      return error as Error;
    } finally {
      isConnected = false;
      void client.end().catch(() => undefined);
      client.connection.stream.destroy();
    }
  }

  /**
   * A transaction pooler hands a connection what it has itself caused to be told, and nothing else, so that beats of its
   * own would come back and changes would not. The first beat therefore comes from another connection.
   */
  async function sendFromElsewhere({ payload }: Beat): Promise<void> {
    const client = new pg.Client(connection);
    client.on('error', () => undefined);
    try {
      await client.connect();
      await client.query('select pg_notify($1, $2)', [channel, payload]);
    } finally {
      await client.end();
    }
  }

  async function sendBeat(client: pg.Client, { payload, sentAtMs }: Beat): Promise<void> {
    const { rows } = await client.query<{ now: Date }>('select clock_timestamp() as now, pg_notify($1, $2)', [
      channel,
      payload,
    ]);
    if (rows[0] !== undefined) clock.sample(rows[0].now.getTime(), sentAtMs, performance.now());
  }

  const watch = setInterval(() => turn(), heartbeatEveryMs).unref();
  const running = (async () => {
    while (!closing.signal.aborted) {
      const cause = await listen();
      if (closing.signal.aborted) return;
      turn(cause);
      await delay(reconnectAfterMs * (1 + Math.random()), undefined, { signal: closing.signal, ref: false }).catch(
        () => undefined,
      );
    }
  })();
  return {
    get caughtUpAtMs() {
      return caughtUpAtMs;
    },
    isLive,
    subscribe: (listener) => void listeners.push(listener),
    async close() {
      clearInterval(watch);
      closing.abort();
      await running;
    },
  };
}

/** A message to oneself, to see whether messages arrive. */
interface Beat {
  payload: string;
  /** Monotonic milliseconds. */
  sentAtMs: number;
  arrive: () => void;
  arrived: Promise<void>;
}

function createBeat(): Beat {
  let arrive: () => void = () => undefined;
  const arrived = new Promise<void>((resolve) => {
    arrive = resolve;
  });
  return { payload: `beat ${randomUUID()}`, sentAtMs: performance.now(), arrive, arrived };
}

/** Rejects when a beat should have arrived long ago. */
async function silence(): Promise<never> {
  await delay(silenceAllowedMs, undefined, { ref: false });
  throw new Error('notifications do not arrive; behind a transaction pooler set LISTEN_DATABASE_URL');
}

/** Rejects with the error that the promise brings; never resolves. */
async function rejected(lost: Promise<Error>): Promise<never> {
  throw await lost;
}
