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
  /** Told of errors on idle connections, such as a restart of Postgres; the pool opens new ones by itself. */
  onIdleError?: (error: Error) => void;
}

const typesWithSafeIntegers: pg.CustomTypesConfig = {
  getTypeParser: ((oid: number, format?: 'text' | 'binary') =>
    oid === pg.types.builtins.INT8
      ? Number
      : pg.types.getTypeParser(oid, format)) as pg.CustomTypesConfig['getTypeParser'],
};

export function connect(options: ClientOptions): DatabaseClient {
  const pool = new pg.Pool({
    connectionString: options.url,
    max: options.poolSize,
    application_name: 'latchkey',
    keepAlive: true,
    keepAliveInitialDelayMillis: 5_000,
    types: typesWithSafeIntegers,
    ...(options.timeoutMs === undefined
      ? {}
      : { query_timeout: options.timeoutMs, connectionTimeoutMillis: options.timeoutMs }),
  });
  pool.on('error', (error) => options.onIdleError?.(error));
  const db = new Kysely<Database>({ dialect: new PostgresDialect({ pool }) });
  return { db, pool, close: () => db.destroy() };
}
