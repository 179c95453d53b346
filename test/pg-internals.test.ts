import { Socket } from 'node:net';
import pg from 'pg';
import { isConnectionLoss, isPoolTimeout, isQueryTimeout, socketOf } from '../src/database/pg-internals.ts';
import { createDatabase } from './support/database.ts';
import { t } from './support/tap.ts';

// What Latchkey relies on in pg without a public way to it. After an upgrade of pg each of these says what has changed.

async function errorOf(failing: Promise<unknown>): Promise<unknown> {
  return failing.then(
    () => undefined,
    (error: unknown) => error,
  );
}

t.test('pg: errors without a code are known by their text', async (t) => {
  const { app: connectionString } = await createDatabase(t);
  const connected = async (options: pg.ClientConfig = {}) => {
    const client = new pg.Client({ connectionString, ...options });
    client.on('error', () => undefined);
    await client.connect();
    return client;
  };

  await t.test('query_timeout', async (t) => {
    const client = await connected({ query_timeout: 50 });
    const error = await errorOf(client.query('select pg_sleep(2)'));
    t.ok(isQueryTimeout(error) && isConnectionLoss(error) && !isPoolTimeout(error), String(error));
    socketOf(client).destroy();
  });

  await t.test('connectionTimeoutMillis of the pool', async (t) => {
    const pool = new pg.Pool({ connectionString, max: 1, connectionTimeoutMillis: 200 });
    const client = await pool.connect();
    const error = await errorOf(pool.connect());
    t.ok(isPoolTimeout(error) && isConnectionLoss(error) && !isQueryTimeout(error), String(error));
    client.release();
    await pool.end();
    t.ok(isConnectionLoss(await errorOf(pool.connect())), 'a pool that was ended');
  });

  await t.test('a connection that ends under a query, and one that is used after its end', async (t) => {
    const lost = await connected();
    const failing = errorOf(lost.query('select pg_sleep(2)'));
    socketOf(lost).destroy();
    t.ok(isConnectionLoss(await failing), String(await failing));
    t.ok(isConnectionLoss(await errorOf(lost.query('select 1'))), 'a query after the loss');
    const ended = await connected();
    await ended.end();
    const error = await errorOf(ended.query('select 1'));
    t.ok(isConnectionLoss(error), String(error));
  });

  await t.test('a server without TLS', async (t) => {
    const client = new pg.Client({ connectionString, ssl: true });
    const error = await errorOf(client.connect());
    t.ok(isConnectionLoss(error), String(error));
  });

  await t.test('an error of the database is none of them', async (t) => {
    const client = await connected();
    const error = await errorOf(client.query('select 1/0'));
    t.notOk(isConnectionLoss(error) || isQueryTimeout(error) || isPoolTimeout(error), String(error));
    await client.end();
  });
});

t.test('pg: the socket of a connection is there', async (t) => {
  const { app: connectionString } = await createDatabase(t);
  const client = new pg.Client({ connectionString });
  await client.connect();
  t.ok(socketOf(client) instanceof Socket);
  await client.end();
  t.ok(socketOf(client).destroyed);
});
