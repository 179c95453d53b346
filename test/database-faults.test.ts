import { sql } from 'kysely';
import { connect } from '../src/database/client.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import { transact } from '../src/database/work.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Json, startService } from './support/app.ts';
import { createDatabase, dbQuery, roleOf } from './support/database.ts';
import { keyringOf } from './support/keyrings.ts';
import { eventually } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { dbEndSessions, holdTransaction } from './support/sessions.ts';
import { t } from './support/tap.ts';

t.test('an unresponsive database gives 503 within two seconds, and the service recovers by itself', async (t) => {
  const urls = await createDatabase(t);
  const proxy = await proxyTo(t, urls.app);
  const client = connect({ url: proxy.url, poolSize: 4, timeoutMs: 1_500 });
  t.teardown(() => client.close());
  const service = await startService(t, { urls, transactor: { db: client.db, clock: createDatabaseClock() } });
  t.equal((await service.admin.get('/v1/keys')).status, 200);

  proxy.swallow(true);
  const startedAt = performance.now();
  const replies = await Promise.all([
    service.admin.get('/v1/keys'),
    service.admin.post('/v1/keys', {}),
    service.verifier.post('/v1/verify', { key: 'x', permission: 'read' }),
    service.app.inject('/readyz').then((response) => ({ status: response.statusCode, body: response.json() as Json })),
  ]);
  t.ok(performance.now() - startedAt < 2_500, 'the promised two seconds, and a margin for a busy machine');
  for (const { status, body } of replies) t.same([status, body.code], [503, 'unavailable']);
  t.equal((await service.app.inject('/livez')).statusCode, 200);

  proxy.swallow(false);
  proxy.end();
  await eventually(async () => (await service.admin.get('/v1/keys')).status === 200, 5_000);
});

t.test(
  'if connections are killed at any moment, a request gets 503 or is done completely, and the process continues',
  async (t) => {
    const service = await startService(t);
    const { admin, urls } = service;
    const role = roleOf(urls.app);
    let isOver = false;
    const killer = (async () => {
      while (!isOver) {
        await dbEndSessions(urls.superuser, 'usename = $1', [role]);
      }
    })();
    const replies: number[] = [];
    const write = async (worker: number) => {
      for (let round = 0; round < 15; round++) {
        const email = `p${worker}-${round}@p.example`;
        replies.push((await admin.post('/v1/partners', { email, permissions: ['read'] })).status);
      }
    };
    await Promise.all([0, 1, 2, 3].map(write));
    isOver = true;
    await killer;
    t.ok(
      replies.every((status) => status === 201 || status === 503),
      `${[...new Set(replies)]}`,
    );
    t.ok(replies.includes(503), 'connections were lost');
    const { body } = await eventually(async () => {
      const reply = await admin.get('/v1/history/verify');
      return reply.status === 200 && reply;
    });
    t.match(body, { valid: true });
    const [counts] = await dbQuery(
      urls.superuser,
      `select (select count(*) from partners)::int as partners, (select count(*) from api_keys)::int as keys,
       (select count(*) from history where action = 'partner.created')::int as partner_events,
       (select count(*) from history where action = 'key.created')::int as key_events`,
    );
    const { partners } = counts as { partners: number };
    t.same(counts, { partners, keys: partners, partner_events: partners, key_events: partners });
    t.ok(partners >= replies.filter((status) => status === 201).length, 'nothing acknowledged is lost');
  },
);

t.test('a request that timed out with 503 is never committed by a later request', async (t) => {
  const urls = await createDatabase(t);
  // One connection, so that the next request gets the one on which the first request failed.
  const client = connect({ url: urls.app, poolSize: 1, timeoutMs: 1_000 });
  t.teardown(() => client.close());
  const service = await startService(t, { urls, transactor: { db: client.db, clock: createDatabaseClock() } });
  await eventually(async () => service.verification.feed.isLive());
  const { body: key } = await service.admin.post('/v1/keys', {});
  const { body: partner } = await service.admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const verify = async () =>
    (await service.verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code as string;
  const holder = await holdTransaction(t, urls.superuser, 'select * from history_heads for update');
  const startedAt = performance.now();
  t.equal((await service.admin.delete(`/v1/keys/${key.id}`)).status, 503);
  t.ok(performance.now() - startedAt < 2_500);
  await holder.query('rollback');
  await eventually(async () => (await verify()) === 'valid', 3_000);
  const renamed = await eventually(async () => {
    const reply = await service.admin.patch(`/v1/partners/${partner.id}`, { name: 'Next' });
    return reply.status === 200 && reply;
  });
  t.equal(renamed.body.name, 'Next');
  t.equal(await verify(), 'valid');
  t.equal((await service.admin.get(`/v1/keys/${key.id}`)).body.status, 'active');
  const { body: history } = await service.admin.get(`/v1/keys/${key.id}/history`);
  t.same(
    history.data.map((event: Json) => event.action),
    ['key.created'],
  );
});

t.test('after a deadlock the transaction is retried, and both changes are done', async (t) => {
  const urls = await createDatabase(t);
  await dbQuery(
    urls.owner,
    `create table pair (id int primary key, n int); insert into pair values (1, 0), (2, 0);
    grant select, update on pair to ${roleOf(urls.app)}`,
  );
  const client = connect({ url: urls.app, poolSize: 2 });
  t.teardown(() => client.close());
  const by = {
    actor: { type: 'system', id: 'test', name: 'test', email: null },
    organizationId: null,
    request: null,
  } as const;
  let runs = 0;
  const arrived: Array<() => void> = [];
  const bothHoldOne = () =>
    new Promise<void>((resolve) => {
      arrived.push(resolve);
      if (arrived.length >= 2) for (const go of arrived) go();
    });
  const update = (first: number, second: number) =>
    transact(
      { db: client.db, keyring: keyringOf('test'), clock: createDatabaseClock(), onAppended: enqueueDeliveries },
      by,
      async ({ tx }) => {
        runs += 1;
        await sql`update pair set n = n + 1 where id = ${first}`.execute(tx);
        await bothHoldOne();
        await sql`update pair set n = n + 1 where id = ${second}`.execute(tx);
      },
    );
  await Promise.all([update(1, 2), update(2, 1)]);
  t.ok(runs > 2, 'one transaction was retried');
  t.same(await dbQuery(urls.owner, 'select n from pair'), [{ n: 2 }, { n: 2 }]);
});
