import { Kysely, PostgresDialect, type Transaction } from 'kysely';
import pg from 'pg';
import type { Database } from './schema.ts';

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
  /** Told of connections that were lost, such as by a restart of Postgres; the pool opens new ones by itself. */
  onLost?: (error: Error) => void;
}

const typesWithSafeIntegers: pg.CustomTypesConfig = {
  getTypeParser: ((oid: number, format?: 'text' | 'binary') =>
    oid === pg.types.builtins.INT8
      ? Number
      : pg.types.getTypeParser(oid, format)) as pg.CustomTypesConfig['getTypeParser'],
};

/**
 * A connection that dies when a query has not been answered in time. pg only stops waiting: the statement goes on, the
 * `rollback` behind it would never be sent, and whoever got the connection next would commit what nobody was told of.
 */
class MortalClient extends pg.Client {
  // pg declares eight forms of it; whichever is used, what comes back is what the caller gets.
  override query = ((...given: Parameters<pg.Client['query']>) => {
    const result: unknown = super.query(...given);
    if (result instanceof Promise) result.catch((error: unknown) => this.#dieOf(error));
    return result;
  }) as pg.Client['query'];

  #dieOf(error: unknown): void {
    if (error instanceof Error && error.message === 'Query read timeout') this.connection.stream.destroy();
  }
}

export function connect(options: ClientOptions): DatabaseClient {
  const pool = new pg.Pool({
    Client: MortalClient,
    connectionString: options.url,
    max: options.poolSize,
    application_name: 'latchkey',
    keepAlive: true,
    keepAliveInitialDelayMillis: 5_000,
    types: typesWithSafeIntegers,
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
  const db = new Kysely<Database>({ dialect: new PostgresDialect({ pool }) });
  return { db, pool, close: () => db.destroy() };
}
