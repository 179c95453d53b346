import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { idSuffixPattern } from '../core/ids.ts';
import type { DatabaseClock } from './clock.ts';
import { prepareSession } from './session.ts';

/** What somebody who keeps copies of records is told. */
export interface ChangeListener {
  /** The record with this id was changed or deleted. It belongs to this organization; null: to none. */
  changed(id: string, organizationId: string | null): void;
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
  /** Sends a notification the way on which changes are made, which is what the feed must hear. */
  notify: (channel: string, payload: string) => Promise<void>;
  /** A direct connection: a pooler that hands out connections by transaction does not deliver notifications. */
  url: string;
  clock: DatabaseClock;
  /** Told when the feed begins and ceases to be live. */
  onTurn?: (isLive: boolean, cause?: Error) => void;
}

const channel = 'latchkey_changes';
const everything = '*';
/** A changed record and its organization, as the trigger names them. Anything else is nobody's notice, and ignored. */
const notice = new RegExp(`^(?:org|partner|key|token)_${idSuffixPattern}(?: org_${idSuffixPattern})?$`);
const heartbeatEveryMs = 500;
/**
 * After so many heartbeats one goes the way of the service's own queries: a transaction pooler hands a connection what it
 * has itself caused to be told and nothing else, and a connection to another database would hear itself as well.
 */
const beatsBetweenProofs = 10;
/** Longer silence than this and the feed is not live: a connection can be dead without telling. */
const silenceAllowedMs = 2_000;
const reconnectAfterMs = 250;

/**
 * Listens on a connection of its own, and reconnects for as long as it is open. Postgres delivers notifications in the
 * order of commits, so a heartbeat that comes back through the channel proves that all before it has arrived. The first
 * one, and one now and then, goes the way on which the service makes its changes.
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
    let giveUp: (cause: Error) => void = () => undefined;
    let lost: Error | undefined;
    const lose = (cause: Error) => {
      lost ??= cause;
      giveUp(lost);
    };
    const stop = () => lose(new Error('the service is stopping'));
    client.on('error', lose);
    client.on('end', () => lose(new Error('the connection has ended')));
    closing.signal.addEventListener('abort', stop, { once: true });
    /** Of its own for each wait: whatever waits beside a promise that lives as long as the connection is never let go. */
    const orLost = <Value>(promise: Promise<Value>) =>
      new Promise<Value>((resolve, reject) => {
        giveUp = reject;
        if (lost !== undefined) reject(lost);
        promise.then(resolve, reject);
      });
    const beats = new Map<string, Beat>();
    client.on('notification', ({ payload = '' }) => {
      const beat = beats.get(payload);
      if (beat !== undefined) {
        caughtUpAtMs = Math.max(caughtUpAtMs, beat.sentAtMs);
        isConnected = true;
        beat.arrive();
        turn();
      } else if (payload === everything) for (const listener of listeners) listener.restarted();
      else if (notice.test(payload)) tell(payload);
    });
    const tell = (payload: string) => {
      const [id = '', organizationId = null] = payload.split(' ', 2);
      for (const listener of listeners) listener.changed(id, organizationId);
    };
    const exchange = async (send: (beat: Beat) => Promise<void>) => {
      const beat = createBeat();
      beats.set(beat.payload, beat);
      try {
        await send(beat);
        await arrival(beat);
      } finally {
        beats.delete(beat.payload);
      }
    };
    const loseIfUnheard = (error: unknown) => {
      if (error instanceof Unheard) lose(error);
    };
    const sendTheServicesWay = ({ payload }: Beat) => options.notify(channel, payload);
    try {
      await orLost(connect(client));
      for (const listener of listeners) listener.restarted();
      await orLost(exchange(sendTheServicesWay));
      for (let number = 1; ; number++) {
        await orLost(delay(heartbeatEveryMs, undefined, { ref: false }));
        await orLost(exchange((beat) => sendBeat(client, beat)));
        // Not waited for: the service's own connections may all be busy, and that says nothing of this one.
        if (number % beatsBetweenProofs === 0) void exchange(sendTheServicesWay).catch(loseIfUnheard);
      }
    } catch (error) {
      return error as Error;
    } finally {
      isConnected = false;
      closing.signal.removeEventListener('abort', stop);
      void client.end().catch(() => undefined);
      client.connection.stream.destroy();
    }
  }

  async function connect(client: pg.Client): Promise<void> {
    await client.connect();
    await prepareSession(client);
    await client.query(`listen ${channel}`);
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

/** A message that should have arrived long ago. */
class Unheard extends Error {
  constructor() {
    super(
      'notifications do not arrive; LISTEN_DATABASE_URL must lead to the same database, past any transaction pooler',
    );
  }
}

/** @throws Unheard */
function arrival({ arrived }: Beat): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Unheard()), silenceAllowedMs);
    void arrived.then(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
