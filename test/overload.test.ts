import type { AddressInfo } from 'node:net';
import { sql } from 'kysely';
import { connect, PoolUsedUp } from '../src/database/client.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import { type Json, startService } from './support/app.ts';
import { createDatabase } from './support/database.ts';
import { eventually } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { holdTransaction } from './support/sessions.ts';
import { t } from './support/tap.ts';

t.test(
  'with an exhausted pool, requests that need it get 503 at once, and known keys are still verified',
  async (t) => {
    const urls = await createDatabase(t);
    const client = connect({ url: urls.app, poolSize: 2, timeoutMs: 20_000, queueLimit: 3 });
    t.teardown(() => client.close());
    const service = await startService(t, { urls, transactor: { db: client.db, clock: createDatabaseClock() } });
    const { app, admin, verifier } = service;
    await eventually(async () => service.verification.feed.isLive());
    const { body: key } = await admin.post('/v1/keys', {});
    const verify = async () => (await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code;
    t.equal(await verify(), 'valid');

    const holder = await holdTransaction(t, urls.superuser, 'select * from history_heads for update');
    const patches = Array.from({ length: 5 }, (_, n) => admin.patch(`/v1/keys/${key.id}`, { name: `Name ${n}` }));
    await eventually(async () => client.pool.waitingCount === 3);

    const startedAtMs = performance.now();
    const refused = await admin.get('/v1/keys');
    t.match(refused, { status: 503, body: { code: 'overloaded' }, headers: { 'retry-after': '1' } });
    t.ok(performance.now() - startedAtMs < 500, 'without waiting');
    for (let round = 0; round < 20; round++) t.equal(await verify(), 'valid');
    t.equal((await app.inject('/livez')).statusCode, 200);
    t.equal((await app.inject('/readyz')).statusCode, 200, 'other replicas are just as busy');

    await holder.query('rollback');
    t.same(
      (await Promise.all(patches)).map(({ status }) => status),
      [200, 200, 200, 200, 200],
      'queued requests are done',
    );
    t.equal((await admin.get('/v1/keys')).status, 200);
  },
);

t.test('a timeout while waiting for a connection distinguishes an exhausted pool from a silent database', async (t) => {
  const { app: url } = await createDatabase(t);
  const proxy = await proxyTo(t, url);
  const { db, close } = connect({ url: proxy.url, poolSize: 1, timeoutMs: 400 });
  t.teardown(close);
  const outcomes = async (seconds: number) => {
    const verify = () => sql`select pg_sleep(${seconds})`.execute(db);
    const settled = await Promise.allSettled(Array.from({ length: 8 }, verify));
    return settled.map((one) => (one.status === 'fulfilled' ? 'done' : one.reason instanceof PoolUsedUp));
  };
  const busy = await outcomes(0.15);
  t.equal(busy[0], 'done');
  t.equal(busy.at(-1), true, 'other queries used the connection');
  proxy.swallow(true);
  t.same(new Set(await outcomes(0)), new Set([false]), 'no query got a connection: the database is silent');
});

t.test('with a stalled event loop, management is rejected first, then verification, and /livez never', async (t) => {
  const service = await startService(t, { eventLoopDelayLimitMs: 100 });
  const { app, admin, verifier } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  await app.listen({ port: 0, host: '127.0.0.1' });
  const origin = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`;
  const call = async (path: string, token: string, body?: unknown) => {
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
    const init = body === undefined ? { headers } : { headers, method: 'POST', body: JSON.stringify(body) };
    const reply = await fetch(origin + path, init);
    return { status: reply.status, retryAfter: reply.headers.get('retry-after'), body: (await reply.json()) as Json };
  };
  const list = () => call('/v1/keys', admin.token);
  const verify = () => call('/v1/verify', verifier.token, { key: key.key, permission: 'read' });
  const isRefused = (reply: Awaited<ReturnType<typeof call>>) => reply.status === 503 && reply;
  const stall = (ms: number) => {
    const timer = setInterval(() => {
      for (const until = performance.now() + ms; performance.now() < until; );
    }, 1);
    return () => clearInterval(timer);
  };
  t.equal((await list()).status, 200);

  const endSmallStall = stall(200);
  const refused = await eventually(async () => isRefused(await list()));
  t.match(refused, { retryAfter: '1', body: { code: 'overloaded' } });
  t.match((await verify()).body, { valid: true }, 'verification has a higher limit');
  t.equal((await call('/livez', '')).status, 200);
  endSmallStall();
  await eventually(async () => (await list()).status === 200);

  const endGreatStall = stall(600);
  t.match(await eventually(async () => isRefused(await verify())), { retryAfter: '1', body: { code: 'overloaded' } });
  t.equal((await call('/livez', '')).status, 200);
  endGreatStall();
  await eventually(async () => (await verify()).status === 200);
});
