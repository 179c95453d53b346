import pg from 'pg';
import { socketOf } from '../database/pg-internals.ts';
import { prepareSession } from '../database/session.ts';
import { pause } from '../lib/backoff.ts';

/**
 * Runs `act` unless somebody is at the same job already, in this process or any other. The lock belongs to a connection
 * of its own: however a process ends, Postgres lets go of it at that moment.
 * @returns whether `act` was run
 */
export async function runAlone(url: string, name: string, act: () => Promise<void>): Promise<boolean> {
  const client = new pg.Client({
    connectionString: url,
    application_name: 'latchkey job',
    connectionTimeoutMillis: 10_000,
    keepAlive: true,
  });
  // A connection that is lost while the job runs: the job is safe to be run twice, and its own queries will tell.
  client.on('error', () => undefined);
  try {
    await client.connect();
    await prepareSession(client);
    const { rows } = await client.query<{ mine: boolean }>('select pg_try_advisory_lock(hashtext($1)) as mine', [
      `latchkey job ${name}`,
    ]);
    if (rows[0]?.mine !== true) return false;
    await act();
    return true;
  } finally {
    // When the server has hung up, the lock is free.
    await Promise.race([client.end(), pause(1_000)]);
    socketOf(client).destroy();
  }
}
