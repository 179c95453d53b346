import { Kysely, PostgresDialect, type Transaction, type TransactionBuilder } from 'kysely';
import pg from 'pg';
import { earliestMs, latestMs } from '../lib/durations.ts';
import { isPoolTimeout, isQueryTimeout, socketOf } from './pg-internals.ts';
import type { Database } from './schema.ts';
import { prepareSession } from './session.ts';

/** For reads. A `Tx` is a `Db` too, so readers also work inside a transaction. */
export type Db = Kysely<Database>;

/** For writes, which are always in a transaction. */
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
   * If a query, or the wait for a connection, takes longer, the request is rejected with `unavailable`. Without this
   * limit, a connection whose packets are lost would block for good. Leave it out for long work, such as a migration.
   */
  timeoutMs?: number;
  /** The limit for the wait for a connection, if it should be shorter than for a query. */
  connectTimeoutMs?: number;
  /** The maximum number of waiting requests; further ones are rejected with `overloaded`. Default: unlimited. */
  queueLimit?: number;
  /** Called when a connection is lost. The pool opens new ones by itself. */
  onLost?: (error: Error) => void;
}

const latestShown = new Date(latestMs);
const earliestShown = new Date(earliestMs);

/**
 * `infinity` and years that RFC 3339 cannot express become the nearest time that it can, so that such a row can be
 * returned.
 */
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
 * Closes the connection after a query timeout. pg only stops waiting: the statement would go on, the `rollback` behind
 * it would never be sent, and the next user of the connection would commit what was rejected with 503.
 */
class ClosingClient extends pg.Client {
  // pg declares eight overloads; all are passed through.
  override query = ((...given: Parameters<pg.Client['query']>) => {
    const result: unknown = super.query(...given);
    if (result instanceof Promise) result.catch((error) => isQueryTimeout(error) && socketOf(this).destroy());
    return result;
  }) as pg.Client['query'];
}

/** Every connection is in use, the database responds, and more requests wait than it can serve in time. */
export class PoolUsedUp extends Error {
  override readonly name = 'PoolUsedUp';
}

/** The pool for Kysely. Its error distinguishes too much work from a database that does not respond. */
function boundedPool(pool: pg.Pool, queueLimit: number) {
  let lastServedMs = Number.NEGATIVE_INFINITY;
  pool.on('release', (_error, client) => {
    // A connection that was closed by a timeout has served no request.
    if (!socketOf(client).destroyed) lastServedMs = performance.now();
  });
  return {
    async connect(): Promise<pg.PoolClient> {
      if (pool.waitingCount >= queueLimit)
        throw new PoolUsedUp(`${pool.waitingCount} requests already wait for a connection`);
      const askedAtMs = performance.now();
      try {
        return await pool.connect();
      } catch (error) {
        if (!isPoolTimeout(error) || lastServedMs < askedAtMs) throw error;
        throw new PoolUsedUp('all connections were in use for too long', { cause: error });
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
  // The pool only handles errors of idle clients. Without this listener, a client that is lost between two queries of a
  // transaction would end the process.
  pool.on('connect', (client) => client.on('error', onLost));
  const db = new Kysely<Database>({
    dialect: new PostgresDialect({ pool: boundedPool(pool, options.queueLimit ?? Number.POSITIVE_INFINITY) }),
  });
  return { db, pool, close: () => db.destroy() };
}

/**
 * A transaction that writes. It sets its isolation level and access mode, because a pooler's connection may have other
 * defaults.
 */
export function writeTransaction(db: Db): TransactionBuilder<Database> {
  return db.transaction().setIsolationLevel('read committed').setAccessMode('read write');
}
