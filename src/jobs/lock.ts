import pg from 'pg';
import { socketOf } from '../database/pg-internals.ts';
import { prepareSession } from '../database/session.ts';
import { pause } from '../lib/backoff.ts';

/**
 * Runs `act` unless the same job is running already, in any process. The lock belongs to its own connection, so
 * Postgres releases it as soon as the process ends.
 * @returns whether `act` was run
 */
export async function runExclusively(url: string, name: string, act: () => Promise<void>): Promise<boolean> {
  const client = new pg.Client({
    connectionString: url,
    application_name: 'latchkey job',
    connectionTimeoutMillis: 10_000,
    keepAlive: true,
  });
  // A lost connection needs no handling here: the job may run twice, and its own queries will fail.
  client.on('error', () => undefined);
  try {
    await client.connect();
    await prepareSession(client);
    const { rows } = await client.query<{ acquired: boolean }>(
      'select pg_try_advisory_lock(hashtext($1)) as acquired',
      [`latchkey job ${name}`],
    );
    if (rows[0]?.acquired !== true) return false;
    await act();
    return true;
  } finally {
    // The lock is free once the server has closed the connection.
    await Promise.race([client.end(), pause(1_000)]);
    socketOf(client).destroy();
  }
}
