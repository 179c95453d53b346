import { type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { twoReplicas } from './support/replicas.ts';
import { dbSessions, untilBlocked } from './support/sessions.ts';
import { t } from './support/tap.ts';

async function eventsOf({ admin }: Pick<Awaited<ReturnType<typeof startService>>, 'admin'>, keyId: string) {
  const { body } = await admin.get(`/v1/history?limit=200&keyId=${keyId}`);
  return body.data.map(({ action }: Json) => action).reverse();
}

t.test('two replicas record a report once and act once, for each of many keys', async (t) => {
  const first = await startService(t);
  const second = await startService(t, { urls: first.urls, keyring: first.keyring });
  const { admin } = first;
  await admin.patch('/v1/organization', { leakResponse: 'suspend' });
  const keys: Json[] = [];
  for (let index = 0; index < 10; index++) {
    const email = `${index}@p.example`;
    keys.push((await admin.post('/v1/partners', { email, permissions: ['read'] })).body.keys[0]);
  }
  const reports = keys.flatMap(({ key }) =>
    Array.from({ length: 10 }, (_, index) => (index % 2 === 0 ? first : second)).map(({ app }) =>
      app.inject({ method: 'POST', url: '/v1/leaks', payload: { key, source: 'race' } }),
    ),
  );
  for (const { statusCode } of await Promise.all(reports)) t.equal(statusCode, 202);
  for (const { id } of keys) t.same(await eventsOf(first, id), ['key.created', 'key.leak_reported', 'key.suspended']);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test(
  'a report races with the deletion, restoration and suspension of its key: nothing is lost or half',
  async (t) => {
    const service = await startService(t);
    const { admin, app } = service;
    await admin.patch('/v1/organization', { leakResponse: 'revoke' });
    for (let round = 0; round < 15; round++) {
      const email = `${round}@p.example`;
      const { body: partner } = await admin.post('/v1/partners', { email, permissions: ['read'] });
      const [key] = partner.keys;
      const [reply] = await Promise.all([
        app.inject({ method: 'POST', url: '/v1/leaks', payload: { key: key.key } }),
        admin.post(`/v1/keys/${key.id}/suspend`),
        admin.delete(`/v1/keys/${key.id}`).then(() => admin.post(`/v1/keys/${key.id}/restore`)),
        round % 3 === 0 ? admin.patch('/v1/organization', { leakResponse: 'revoke' }) : undefined,
      ]);
      t.equal(reply.statusCode, 202);
      const events = await eventsOf(service, key.id);
      t.equal(events.filter((action: string) => action === 'key.leak_reported').length, 1);
      t.equal((await admin.post(`/v1/keys/${key.id}/restore`)).body.code, 'not_restorable', 'it stays compromised');
    }
    t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
  },
);

t.test('a report that cannot be recorded changes nothing, is not acknowledged, and can be sent again', async (t) => {
  const service = await startService(t);
  const { admin, app, urls } = service;
  await admin.patch('/v1/organization', { leakResponse: 'revoke' });
  const { body: key } = await admin.post('/v1/keys', {});
  const report = () => app.inject({ method: 'POST', url: '/v1/leaks', payload: { key: key.key } });
  const role = new URL(urls.app).username;
  await dbQuery(urls.owner, `revoke execute on function history_append(text, text) from "${role}"`);
  const rejected = await report();
  t.equal(rejected.statusCode, 503);
  t.same(rejected.json().code, 'unavailable');
  t.same(await dbQuery(urls.superuser, 'select * from leak_reports'), []);
  t.equal((await admin.get(`/v1/keys/${key.id}`)).body.status, 'active');
  await dbQuery(urls.owner, `grant execute on function history_append(text, text) to "${role}"`);
  t.equal((await report()).statusCode, 202);
  t.same(await eventsOf(service, key.id), ['key.created', 'key.leak_reported', 'key.deleted']);
});

t.test('a process killed before the commit leaves nothing; the same report then acts', async (t) => {
  const { replica, start, url } = await twoReplicas(t);
  const { admin, client } = replica;
  await admin.patch('/v1/organization', { leakResponse: 'suspend' });
  const { body: key } = await admin.post('/v1/keys', {});
  const latchkey = await start();
  const send = () =>
    fetch(`${url}/v1/leaks`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ key: key.key, url: 'https://paste.example/1' }),
    });
  const holder = await client.pool.connect();
  try {
    // The chain's head is locked last, so the report waits with everything else done.
    await holder.query('begin');
    await holder.query('select from history_begin($1)', [replica.organizationId]);
    const lost = send().catch((error: unknown) => error);
    await untilBlocked(replica.urls.superuser, '%history_begin%');
    latchkey.child.kill('SIGKILL');
    await latchkey.exited;
    t.type(await lost, Error, 'no reply');
  } finally {
    await holder.query('rollback');
    holder.release();
  }
  await eventually(async () => {
    const running = await dbSessions(replica.urls.superuser, "query like '%history_begin%' and state <> 'idle'");
    return running.length === 0;
  }, 10_000);
  t.same(await eventsOf(replica, key.id), ['key.created']);
  t.equal((await admin.get(`/v1/keys/${key.id}`)).body.status, 'active');
  t.same(await dbQuery(replica.urls.superuser, 'select * from leak_reports'), []);
  await start();
  t.equal((await send()).status, 202);
  t.same(await eventsOf(replica, key.id), ['key.created', 'key.leak_reported', 'key.suspended']);
});
