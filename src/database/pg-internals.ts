import type { Duplex } from 'node:stream';
import type pg from 'pg';

/**
 * What pg has no public way for: the socket of a connection, and what kind of failure an error is, because those of pg
 * itself have an English text and no code. `test/pg-internals.test.ts` names what another version of pg does differently.
 */

/** The socket behind a connection. */
export function socketOf(client: pg.ClientBase): Duplex {
  return (client as pg.Client).connection.stream as Duplex;
}

/** A query was not answered within `query_timeout`. It goes on in the database. */
export function isQueryTimeout(error: unknown): boolean {
  return startsWith(error, 'Query read timeout');
}

/** No connection of the pool became free within `connectionTimeoutMillis`. */
export function isPoolTimeout(error: unknown): boolean {
  return startsWith(error, 'timeout exceeded when trying to connect');
}

/** The server was not reached, or the connection to it is gone. */
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
