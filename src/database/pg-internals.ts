import type { Duplex } from 'node:stream';
import type pg from 'pg';

/**
 * What pg offers no public API for: a connection's socket, and the kind of pg's own errors, which have a text and no
 * code. test/pg-internals.test.ts fails if another version of pg differs.
 */

/** The socket behind a connection. */
export function socketOf(client: pg.ClientBase): Duplex {
  return (client as pg.Client).connection.stream as Duplex;
}

/** A query took longer than `query_timeout`. It goes on in the database. */
export function isQueryTimeout(error: unknown): boolean {
  return startsWith(error, 'Query read timeout');
}

/** No connection of the pool became free within `connectionTimeoutMillis`. */
export function isPoolTimeout(error: unknown): boolean {
  return startsWith(error, 'timeout exceeded when trying to connect');
}

/** The server was not reached, or the connection was lost. */
export function isConnectionLoss(error: unknown): boolean {
  return isQueryTimeout(error) || isPoolTimeout(error) || losses.some((text) => startsWith(error, text));
}

const losses = [
  'Connection terminated',
  'Client has encountered a connection error',
  'Cannot use a pool after calling end',
  'Client was closed',
  'The server does not support SSL connections',
];

function startsWith(error: unknown, text: string): boolean {
  return error instanceof Error && error.message.startsWith(text);
}
