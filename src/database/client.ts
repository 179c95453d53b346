import { Kysely, PostgresDialect, type Transaction, type TransactionBuilder } from 'kysely';
import pg from 'pg';
import { isPoolTimeout, isQueryTimeout, socketOf } from './pg-internals.ts';
import type { Database } from './schema.ts';
import { prepareSession } from './session.ts';

/** Reads. A `Tx` is one too, so a reader works inside a transaction as well. */
export type Db = Kysely<Database>;

/** Writes. There is no way to write outside a transaction. */
export type Tx = Transaction<Database>;

export interface DatabaseClient {
  db: Db;
  pool: pg.Pool;
  close(): Promise<void>;
}

interface ClientOptions {
  url: string;
  poolSize: number;
  /**
   * How long a query, or the wait for a connection, may take before the request is answered `unavailable`.
   * A connection whose packets vanish neither resets nor replies, so nothing else would ever end the wait.
   * Leave it out for work that may take long, such as a migration.
   */
  timeoutMs?: number;
  /** The wait for a connection alone, where it should end sooner than a query. */
  connectTimeoutMs?: number;
  /** How many may wait for a connection at once; beyond that the answer is `overloaded`. Unlimited by default. */
  queueLimit?: number;
  /** Called when a connection is lost, such as by a restart of Postgres; the pool opens new ones by itself. */
  onLost?: (error: Error) => void;
}

const latestShown = new Date('9999-12-31T23:59:59.999Z');
const earliestShown = new Date('0001-01-01T00:00:00.000Z');

/** `infinity` and years that RFC 3339 cannot write become the nearest time that it can: such a row is shown, too. */
function parseTime(text: string): Date {
  const time = pg.types.getTypeParser(pg.types.builtins.TIMESTAMPTZ)(text) as Date | number;
  if (Number(time) > latestShown.getTime()) return latestShown;
  return Number(time) < earliestShown.getTime() ? earliestShown : (time as Date);
}

const parsers: Partial<Record<number, (text: string) => unknown>> = {
  [pg.types.builtins.INT8]: Number,
  [pg.types.builtins.TIMESTAMPTZ]: parseTime,
};

const ownTypes: pg.CustomTypesConfig = {
  getTypeParser: ((oid: number, format?: 'text' | 'binary') =>
    parsers[oid] ?? pg.types.getTypeParser(oid, format)) as pg.CustomTypesConfig['getTypeParser'],
};

/**
 * Closes the connection when a query has timed out. pg only stops waiting: the statement goes on, the `rollback` behind it
 * would never be sent, and the next user of the connection would commit what was answered with 503.
 */
class ClosingClient extends pg.Client {
  // pg declares eight forms of it; whichever is used, what comes back is what the caller gets.
  override query = ((...given: Parameters<pg.Client['query']>) => {
    const result: unknown = super.query(...given);
    if (result instanceof Promise) result.catch((error) => isQueryTimeout(error) && socketOf(this).destroy());
    return result;
  }) as pg.Client['query'];
}

/** Every connection is in use, the database answers, and more requests wait than it can serve in time. */
export class PoolUsedUp extends Error {
  override readonly name = 'PoolUsedUp';
}

/** Kysely's pool. Its error says whether there is too much work or the database does not answer. */
function boundedPool(pool: pg.Pool, queueLimit: number) {
  let lastServedMs = Number.NEGATIVE_INFINITY;
  pool.on('release', (_error, client) => {
    // A connection that was closed by a silent database has served nobody.
    if (!socketOf(client).destroyed) lastServedMs = performance.now();
  });
  return {
    async connect(): Promise<pg.PoolClient> {
      if (pool.waitingCount >= queueLimit) throw new PoolUsedUp(`${pool.waitingCount} wait for a connection already`);
      const askedAtMs = performance.now();
      try {
        return await pool.connect();
      } catch (error) {
        if (!isPoolTimeout(error) || lastServedMs < askedAtMs) throw error;
        throw new PoolUsedUp('others had all connections for too long', { cause: error });
      }
    },
    end: () => pool.end(),
  };
}

export function connect(options: ClientOptions): DatabaseClient {
  const pool = new pg.Pool({
    Client: ClosingClient,
    connectionString: options.url,
    max: options.poolSize,
    application_name: 'latchkey',
    keepAlive: true,
    keepAliveInitialDelayMillis: 5_000,
    types: ownTypes,
    onConnect: prepareSession,
    ...(options.timeoutMs === undefined
      ? {}
      : {
          query_timeout: options.timeoutMs,
          connectionTimeoutMillis: options.connectTimeoutMs ?? options.timeoutMs,
        }),
  });
  const onLost = (error: Error) => options.onLost?.(error);
  pool.on('error', onLost);
  // The pool listens only to clients that lie idle in it. One that is lost between two queries of a transaction would
  // end the whole process.
  pool.on('connect', (client) => client.on('error', onLost));
  const db = new Kysely<Database>({
    dialect: new PostgresDialect({ pool: boundedPool(pool, options.queueLimit ?? Number.POSITIVE_INFINITY) }),
  });
  return { db, pool, close: () => db.destroy() };
}

/** A transaction that writes. It says how it runs, because a pooler may hand out a connection with other defaults. */
export function writeTransaction(db: Db): TransactionBuilder<Database> {
  return db.transaction().setIsolationLevel('read committed').setAccessMode('read write');
}
