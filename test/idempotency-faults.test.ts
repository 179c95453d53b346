import type { Test } from 'tap';
import { pruneIdempotency } from '../src/http/idempotency-store.ts';
import { type Json, type Reply, startService, type TestService } from './support/app.ts';
import { createTestClock } from './support/clock.ts';
import { dbQuery, roleOf } from './support/database.ts';
import { startLosingService } from './support/lossy-proxy.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

const withKey = (key: string) => ({ 'idempotency-key': key });
const isReplay = ({ headers }: Reply) => headers['idempotent-replayed'] === 'true';

async function counts({ urls }: TestService): Promise<Record<string, unknown> | undefined> {
  const [row] = await dbQuery(
    urls.superuser,
    `select (select count(*) from api_keys)::int as keys, (select count(*) from idempotency_keys)::int as replies,
       (select count(*) from history where action = 'key.created')::int as events`,
  );
  return row;
}

t.test(
  'of 20 concurrent requests with one Idempotency-Key at two replicas one takes effect; the others replay it or are rejected',
  async (t) => {
    const service = await startService(t);
    const { urls, keyring, admin } = service;
    const replica = await startService(t, { urls, keyring });
    const adminOnReplica = replica.as(admin.token);
    const outcomes = { done: 0, replayed: 0, rejected: 0 };
    const rounds = 25;
    for (let round = 0; round < rounds; round++) {
      const input = { email: `p${round}@p.example`, permissions: ['read'] };
      const create = (client = admin) => client.post('/v1/partners', input, withKey(`round ${round}`));
      const replies = await Promise.all(
        Array.from({ length: 20 }, (_, index) => create(index % 2 === 0 ? admin : adminOnReplica)),
      );
      const done = replies.filter((reply) => reply.status === 201 && !isReplay(reply));
      const replayed = replies.filter((reply) => reply.status === 201 && isReplay(reply));
      const rejected = replies.filter(({ status }) => status === 409);
      t.same([done.length, done.length + replayed.length + rejected.length], [1, 20]);
      for (const { body } of replayed) t.same(body, done[0]?.body);
      for (const { body, headers } of rejected) {
        t.same([body.code, headers['retry-after']], ['idempotency_in_progress', '1']);
      }
      t.ok(isReplay(await create()));
      outcomes.done += done.length;
      outcomes.replayed += replayed.length;
      outcomes.rejected += rejected.length;
    }
    t.same(await counts(service), { keys: rounds, replies: rounds, events: rounds });
    t.match((await admin.get('/v1/history/verify')).body, { valid: true });
    t.ok(outcomes.rejected > 0, `requests were concurrent: ${JSON.stringify(outcomes)}`);
  },
);

t.test('of 20 concurrent different requests with one Idempotency-Key exactly one is done', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (let round = 0; round < 10; round++) {
    const replies = await Promise.all(
      Array.from({ length: 20 }, (_, index) => {
        const input = { email: `p${round}-${index}@p.example`, permissions: ['read'] };
        return admin.post('/v1/partners', input, withKey(`round ${round}`));
      }),
    );
    t.equal(replies.filter(({ status }) => status === 201).length, 1);
    const codes = new Set(replies.filter(({ status }) => status !== 201).map(({ body }) => body.code));
    t.ok([...codes].every((code) => ['idempotency_in_progress', 'idempotency_mismatch'].includes(code)));
  }
  t.same(await counts(service), { keys: 10, replies: 10, events: 10 });
});

t.test('a request that cannot be recorded in history stores no reply, and a retry is done', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const role = roleOf(urls.app);
  await dbQuery(urls.owner, `revoke execute on function history_append(text, text) from ${role}`);
  t.equal((await admin.post('/v1/keys', {}, withKey('k'))).status, 503);
  t.same(await counts(service), { keys: 0, replies: 0, events: 0 });
  await dbQuery(urls.owner, `grant execute on function history_append(text, text) to ${role}`);
  const retry = await admin.post('/v1/keys', {}, withKey('k'));
  t.same([retry.status, isReplay(retry)], [201, false]);
});

t.test('a request whose reply cannot be stored is not done, and leaves no event', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const role = roleOf(urls.app);
  await dbQuery(urls.owner, `revoke insert on idempotency_keys from ${role}`);
  t.equal((await admin.post('/v1/keys', {}, withKey('k'))).status, 503);
  t.same(await counts(service), { keys: 0, replies: 0, events: 0 });
  t.equal((await admin.post('/v1/keys', {})).status, 201, 'without the header no reply is stored');
  await dbQuery(urls.owner, `grant insert on idempotency_keys to ${role}`);
  t.equal((await admin.post('/v1/keys', {}, withKey('k'))).status, 201);
});

t.test('a retried transaction counts as one request', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  await dbQuery(
    urls.owner,
    `create sequence runs;
     create function fail_twice() returns trigger language plpgsql security definer as $$
     begin
       if nextval('public.runs') <= 2 then raise exception 'again' using errcode = 'serialization_failure'; end if;
       return new;
     end $$;
     create trigger fail_twice before insert on idempotency_keys for each row execute function fail_twice()`,
  );
  const first = await admin.post('/v1/keys', {}, withKey('k'));
  t.same([first.status, isReplay(first)], [201, false]);
  t.same(await dbQuery(urls.owner, 'select last_value::int as runs from runs'), [{ runs: 3 }]);
  t.same(await counts(service), { keys: 1, replies: 1, events: 1 });
  t.same((await admin.post('/v1/keys', {}, withKey('k'))).body, first.body);
});

/** A service process that loses its database connection at the commit of its first stored reply. */
async function losingService(t: Test, what: 'the commit' | 'the reply to it') {
  const env = { DATABASE_TIMEOUT_MS: '60000' };
  const marker = 'insert into "idempotency_keys"';
  const { service, proxy, process, url } = await startLosingService(t, { what, marker, env });
  const headers = {
    authorization: `Bearer ${service.admin.token}`,
    'content-type': 'application/json',
    ...withKey('k'),
  };
  const sent = fetch(`${url}/v1/keys`, { method: 'POST', headers, body: '{"name":"Once"}' });
  const outcome = sent.then(
    ({ status }) => status,
    () => 'no reply',
  );
  return { service, proxy, process, outcome };
}

t.test('a service killed between commit and reply: the retry returns the one created key', async (t) => {
  const { service, proxy, process, outcome } = await losingService(t, 'the reply to it');
  const { admin, verifier } = service;
  await proxy.lost;
  await eventually(async () => (await counts(service))?.['replies'] === 1);
  process.child.kill('SIGKILL');
  t.same(await process.exited, { code: null, signal: 'SIGKILL' });
  t.equal(await outcome, 'no reply');

  const retry = await admin.post('/v1/keys', { name: 'Once' }, withKey('k'));
  t.same([retry.status, isReplay(retry), retry.body.name], [201, true, 'Once']);
  t.equal((await verifier.post('/v1/verify', { key: retry.body.key, permission: 'write' })).body.valid, true);
  t.same(await counts(service), { keys: 1, replies: 1, events: 1 });
  const { body: history } = await admin.get(`/v1/keys/${retry.body.id}/history`);
  t.same(
    history.data.map((event: Json) => event.action),
    ['key.created'],
  );
});

t.test('a service killed before the commit: the retry creates the one key', async (t) => {
  const { service, proxy, process, outcome } = await losingService(t, 'the commit');
  const { admin } = service;
  await proxy.lost;
  const whileRunning = await admin.post('/v1/keys', { name: 'Once' }, withKey('k'));
  t.same(
    [whileRunning.status, whileRunning.body.code],
    [409, 'idempotency_in_progress'],
    'while the first request runs',
  );
  process.child.kill('SIGKILL');
  t.same(await process.exited, { code: null, signal: 'SIGKILL' });
  t.equal(await outcome, 'no reply');

  const retry = await eventually(async () => {
    const reply = await admin.post('/v1/keys', { name: 'Once' }, withKey('k'));
    return reply.status === 201 && reply;
  });
  t.notOk(isReplay(retry));
  t.same(await counts(service), { keys: 1, replies: 1, events: 1 });
});

t.test('only replies past their retention are deleted, in batches', async (t) => {
  const service = await startService(t);
  const { client, admin, later } = service;
  const day = 86_400_000;
  const post = (index: number) =>
    admin.post('/v1/partners', { email: `p${index}@p.example`, permissions: ['read'] }, withKey(`k${index}`));
  for (let index = 0; index < 5; index++) await post(index);
  const prune = (aheadMs: number) => pruneIdempotency({ db: client.db, clock: createTestClock(aheadMs) }, 2);
  t.equal(await prune(day - 60_000), 0);
  later(day);
  await post(5);
  t.equal(await prune(day), 5);
  t.equal(await prune(day), 0);
  t.match(await counts(service), { replies: 1 });
  t.ok(isReplay(await post(5)));
});

t.test("the service's role can insert, erase and delete stored replies, and change nothing else", async (t) => {
  const { admin, urls } = await startService(t);
  await admin.post('/v1/keys', {}, withKey('k'));
  for (const sql of ['update idempotency_keys set created_at = now()', 'truncate idempotency_keys']) {
    await t.rejects(dbQuery(urls.app, sql), { code: '42501' });
  }
});
