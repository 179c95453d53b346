import { Socket } from 'node:net';
import pg from 'pg';
import { isConnectionLoss, isPoolTimeout, isQueryTimeout, socketOf } from '../src/database/pg-internals.ts';
import { createDatabase } from './support/database.ts';
import { t } from './support/tap.ts';

// Latchkey relies on these internals of pg. After an upgrade of pg these tests name what has changed.

async function errorOf(failing: Promise<unknown>): Promise<unknown> {
  return failing.then(
    () => undefined,
    (error: unknown) => error,
  );
}

t.test('pg: errors without a code are recognized by their text', async (t) => {
  const { app: connectionString } = await createDatabase(t);
  const connected = async (options: pg.ClientConfig = {}) => {
    const client = new pg.Client({ connectionString, ...options });
    client.on('error', () => undefined);
    await client.connect();
    return client;
  };

  await t.test('query_timeout is recognized', async (t) => {
    const client = await connected({ query_timeout: 50 });
    const error = await errorOf(client.query('select pg_sleep(2)'));
    t.ok(isQueryTimeout(error) && isConnectionLoss(error) && !isPoolTimeout(error), String(error));
    socketOf(client).destroy();
  });

  await t.test('connectionTimeoutMillis of the pool is recognized', async (t) => {
    const pool = new pg.Pool({ connectionString, max: 1, connectionTimeoutMillis: 200 });
    const client = await pool.connect();
    const error = await errorOf(pool.connect());
    t.ok(isPoolTimeout(error) && isConnectionLoss(error) && !isQueryTimeout(error), String(error));
    client.release();
    await pool.end();
    t.ok(isConnectionLoss(await errorOf(pool.connect())), 'a pool that was ended');
  });

  await t.test('a connection that ends during a query, and one used after its end, are recognized', async (t) => {
    const lostClient = await connected();
    const failing = errorOf(lostClient.query('select pg_sleep(2)'));
    socketOf(lostClient).destroy();
    t.ok(isConnectionLoss(await failing), String(await failing));
    t.ok(isConnectionLoss(await errorOf(lostClient.query('select 1'))), 'a query after the loss');
    const endedClient = await connected();
    await endedClient.end();
    const error = await errorOf(endedClient.query('select 1'));
    t.ok(isConnectionLoss(error), String(error));
  });

  await t.test('a server without TLS is recognized', async (t) => {
    const client = new pg.Client({ connectionString, ssl: true });
    const error = await errorOf(client.connect());
    t.ok(isConnectionLoss(error), String(error));
  });

  await t.test('an error of the database is not a connection error', async (t) => {
    const client = await connected();
    const error = await errorOf(client.query('select 1/0'));
    t.notOk(isConnectionLoss(error) || isQueryTimeout(error) || isPoolTimeout(error), String(error));
    await client.end();
  });
});

t.test('pg: a connection exposes its socket', async (t) => {
  const { app: connectionString } = await createDatabase(t);
  const client = new pg.Client({ connectionString });
  await client.connect();
  t.ok(socketOf(client) instanceof Socket);
  await client.end();
  t.ok(socketOf(client).destroyed);
});
