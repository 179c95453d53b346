import { sql } from 'kysely';
import type { Test } from 'tap';
import { dbAddKeys } from '../bench/key-rows.ts';
import { suspendIdleKeys } from '../src/keys/idle-job.ts';
import { idleTimesAt, noticeMs, suspensionDue } from '../src/keys/idle-policy.ts';
import { foldOldUsage } from '../src/verification/usage-store.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Client, type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

const minute = 60_000;
const hour = 60 * minute;
const day = 24 * hour;

t.test('a suspension is announced 7 days ahead; if keys may idle 7 days or less, after half of the time', async (t) => {
  for (const [days, expected] of [
    [1, 12 * hour],
    [2, day],
    [7, 3.5 * day],
    [8, 7 * day],
    [30, 7 * day],
    [3_650, 7 * day],
  ] as const) {
    t.equal(noticeMs(days), expected, `${days} days`);
  }
});

t.test('the time without use and the time since the announcement decide about an idle key', async (t) => {
  const now = new Date('2026-06-30T12:00:00Z');
  const ago = (ms: number) => new Date(now.getTime() - ms);
  // Usage is written a few seconds late, so five minutes are added.
  t.same(idleTimesAt(now, 30), {
    announceIdleSince: ago(23 * day + 5 * minute),
    suspendIdleSince: ago(30 * day + 5 * minute),
    announcedUntil: ago(7 * day),
  });
  t.same(idleTimesAt(now, 2), {
    announceIdleSince: ago(day + 5 * minute),
    suspendIdleSince: ago(2 * day + 5 * minute),
    announcedUntil: ago(day),
  });
  for (const [what, idle, days, expected] of [
    ['announced in time', 23 * day, 30, -7 * day],
    ['announced late, because the policy is new', 400 * day, 30, -7 * day],
    ['a short time', 12 * hour, 1, -12 * hour],
  ] as const) {
    t.same(suspensionDue(ago(idle), now, days), ago(expected), what);
  }
});

const events = async (admin: Client, query: string): Promise<Json[]> =>
  (await admin.get(`/v1/history?limit=200&${query}`)).body.data;

async function startWithJob(t: Test, idleSuspendAfterDays: number) {
  const service = await startService(t);
  const { admin, verifier, later } = service;
  const transactor = {
    db: service.client.db,
    keyring: service.keyring,
    clock: service.clock,
    onAppended: enqueueDeliveries,
  };
  await admin.patch('/v1/organization', { idleSuspendAfterDays });
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys as Json[];
  const announced = () => events(admin, `action=key.idle_announced&keyId=${key.id}`);
  const run = () => suspendIdleKeys({ transactor });
  return {
    ...service,
    transactor,
    partner,
    key,
    run,
    announced,
    suspended: () => events(admin, `action=key.suspended&keyId=${key.id}`),
    shown: async () => (await admin.get(`/v1/keys/${key.id}`)).body,
    async use() {
      const { body } = await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
      await service.verification.usage.flush();
      return body.code as string;
    },
    /** Runs the job each day. */
    async passDays(days: number) {
      for (let passed = 0; passed < days; passed++) {
        later(day);
        await run();
      }
    },
  };
}

t.test(
  'a key without use is announced once, 7 days ahead, then suspended; resuming starts the time again',
  async (t) => {
    const { app, admin, run, later, key, partner, announced, suspended, shown, use, passDays } = await startWithJob(
      t,
      30,
    );
    later(23 * day);
    t.equal(await run(), 0, 'not yet');
    later(10 * minute);
    t.equal(await run(), 1);
    t.equal(await run(), 0, 'once');
    const [notice] = await announced();
    t.match(notice, {
      partnerId: partner.id,
      actor: { type: 'system', id: 'suspend_idle_keys' },
      request: null,
      details: { idleSince: key.createdAt },
    });
    const suspendAt = Date.parse(notice.details.suspendAt);
    t.ok(suspendAt >= Date.parse(key.createdAt) + 30 * day && suspendAt < Date.parse(key.createdAt) + 30 * day + hour);
    later(7 * day - hour);
    t.equal(await run(), 0, 'the notice is not over');
    later(hour + minute);
    t.equal(await run(), 1);
    t.match(await shown(), { status: 'suspended', suspendedReason: 'idle' });
    t.equal(await use(), 'suspended');
    t.match(await app.metrics.text(), /^latchkey_keys_suspended_idle 1$/m);
    t.match(await suspended(), [{ actor: { id: 'suspend_idle_keys' }, details: { reason: 'idle' } }]);
    t.equal(await run(), 0);

    await admin.post(`/v1/keys/${key.id}/resume`);
    await passDays(23);
    t.equal((await announced()).length, 1, 'the time starts with the resume');
    t.match(await shown(), { status: 'active' });
    await passDays(9);
    t.equal((await announced()).length, 2);
    t.match(await shown(), { status: 'suspended' });
    t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
  },
);

t.test('a use starts the time again, also after the announcement and just before the suspension', async (t) => {
  const { later, run, announced, suspended, use, passDays } = await startWithJob(t, 30);
  await passDays(20);
  t.equal(await use(), 'valid');
  await passDays(23);
  t.equal((await announced()).length, 0);
  await passDays(1);
  t.equal((await announced()).length, 1);
  await passDays(6);
  later(day);
  t.equal(await use(), 'valid', 'a moment before the job runs');
  t.equal(await run(), 0);
  await passDays(23);
  t.equal((await announced()).length, 1);
  await passDays(1);
  t.equal((await announced()).length, 2, 'another time without use is announced again');
  t.equal((await suspended()).length, 0);
  await passDays(7);
  t.equal((await suspended()).length, 1);
});

t.test('a use that is not written yet wins over the suspension', async (t) => {
  const { later, run, verifier, key, verification, announced, suspended } = await startWithJob(t, 30);
  later(23 * day + 10 * minute);
  await run();
  t.equal((await announced()).length, 1);
  // The last moment of the time without use. The use is written after the time is over.
  later(7 * day - 10 * minute - 3_000);
  await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  later(hour);
  await verification.usage.flush();
  t.equal(await run(), 0);
  t.equal((await suspended()).length, 0);
});

t.test('usage that was aggregated into days counts too', async (t) => {
  const { transactor, use, passDays, announced } = await startWithJob(t, 30);
  await passDays(20);
  await use();
  await passDays(2);
  t.equal(await foldOldUsage(transactor, { hourlyDays: 1 }), 1);
  await passDays(21);
  t.equal((await announced()).length, 0);
});

t.test('a new policy suspends nothing without notice, and a policy that was off announces again', async (t) => {
  const { admin, later, run, announced, suspended, shown } = await startWithJob(t, 30);
  const setDays = (idleSuspendAfterDays: number | null) => admin.patch('/v1/organization', { idleSuspendAfterDays });
  await setDays(null);
  later(400 * day);
  t.equal(await run(), 0);
  await setDays(30);
  t.equal(await run(), 1);
  t.equal((await announced()).length, 1);
  later(6 * day);
  await setDays(null);
  t.equal(await run(), 0);
  later(30 * day);
  await setDays(30);
  await run();
  t.equal((await announced()).length, 2);
  t.equal((await suspended()).length, 0);
  later(7 * day);
  await setDays(null);
  await run();
  t.match(await shown(), { status: 'active' }, 'the policy was taken back in time');
});

t.test('a longer time announces again, because the earlier announcement named another day', async (t) => {
  const { admin, passDays, key, announced, shown } = await startWithJob(t, 30);
  await passDays(24);
  t.equal((await announced()).length, 1);
  await admin.patch('/v1/organization', { idleSuspendAfterDays: 60 });
  await passDays(29);
  t.equal((await announced()).length, 1);
  await passDays(1);
  const [notice] = await announced();
  t.equal((await announced()).length, 2);
  t.ok(Date.parse(notice.details.suspendAt) >= Date.parse(key.createdAt) + 60 * day);
  await passDays(6);
  t.match(await shown(), { status: 'active' });
  await passDays(1);
  t.match(await shown(), { status: 'suspended', suspendedReason: 'idle' });
});

t.test('an expired key that gets a later expiry has the time of the notice', async (t) => {
  const { admin, passDays, key, clock, announced, shown } = await startWithJob(t, 30);
  const expireIn = (ms: number) =>
    admin.patch(`/v1/keys/${key.id}`, { expiresAt: new Date(clock.nowMs() + ms).toISOString() });
  await expireIn(25 * day);
  await passDays(40);
  t.equal((await announced()).length, 1);
  t.match(await expireIn(100 * day), { status: 200 });
  await passDays(1);
  t.match(await shown(), { status: 'active' });
  t.equal((await announced()).length, 2);
  await passDays(7);
  t.match(await shown(), { status: 'suspended', suspendedReason: 'idle' });
});

t.test('only keys that could be used are suspended for not being used', async (t) => {
  const { admin, verifier, later, passDays, partner, key, announced, shown, clock } = await startWithJob(t, 30);
  await admin.post(`/v1/partners/${partner.id}/suspend`);
  const expiresAt = new Date(clock.nowMs() + 20 * day).toISOString();
  const { body: expired } = await admin.post('/v1/keys', { expiresAt });
  const { body: deleted } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${deleted.id}`);
  await passDays(40);
  t.equal((await announced()).length, 0, 'the partner is suspended');
  await admin.post(`/v1/partners/${partner.id}/resume`);
  await passDays(1);
  t.equal((await announced()).length, 1, 'after the partner is resumed, its keys have the time of the notice');
  await passDays(5);
  t.match(await shown(), { status: 'active' });
  await admin.delete(`/v1/keys/${key.id}`);
  t.match(await admin.post(`/v1/keys/${key.id}/restore`), { status: 200 });
  await passDays(20);
  t.match(await shown(), { status: 'active' }, 'a restored key counts from its restore');
  t.match((await admin.get(`/v1/keys/${expired.id}`)).body, { status: 'expired' });
  later(1);
  t.equal((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code, 'valid');
});

t.test('with a time of one day the notice comes after half a day', async (t) => {
  const { later, run, announced, suspended, key } = await startWithJob(t, 1);
  later(12 * hour + 6 * minute);
  await run();
  const [notice] = await announced();
  t.ok(Date.parse(notice.details.suspendAt) - Date.parse(key.createdAt) >= day);
  later(11 * hour);
  await run();
  t.equal((await suspended()).length, 0);
  later(2 * hour);
  await run();
  t.equal((await suspended()).length, 1);
});

async function addIdleKeys(
  { urls, organizationId, keyring }: Awaited<ReturnType<typeof startWithJob>>,
  partners: number,
) {
  await dbAddKeys(urls.superuser, {
    organizationId: organizationId as `org_${string}` & Parameters<typeof dbAddKeys>[1]['organizationId'],
    keyring,
    argon2idHash: 'not read',
    partners,
  });
  return partners * 2 + 1;
}

const countOf = async (url: string, action: string) => {
  const [row] = await dbQuery(
    url,
    'select count(*)::int as all, count(distinct key_id)::int as keys from history where action = $1',
    [action],
  );
  return row;
};

t.test(
  'two replicas at once, and one that is killed in the middle, leave each key announced and suspended once',
  async (t) => {
    const service = await startWithJob(t, 30);
    const { urls, transactor, later, run, admin } = service;
    const all = await addIdleKeys(service, 600);
    later(24 * day);
    let appended = 0;
    const dying = {
      ...transactor,
      onAppended: async (...[work, recorded]: Parameters<typeof enqueueDeliveries>) => {
        appended += recorded.length;
        if (appended > 250) await sql`select pg_terminate_backend(pg_backend_pid())`.execute(work.tx);
        await enqueueDeliveries(work, recorded);
      },
    };
    await t.rejects(suspendIdleKeys({ transactor: dying }));
    t.same(await countOf(urls.superuser, 'key.idle_announced'), { all: 200, keys: 200 }, 'whole batches');
    const sums = await Promise.all([run(), run(), run()]);
    t.equal(
      sums.reduce((sum, count) => sum + count),
      all - 200,
    );
    t.equal(await run(), 0);
    t.same(await countOf(urls.superuser, 'key.idle_announced'), { all, keys: all });

    later(7 * day);
    appended = 0;
    await t.rejects(suspendIdleKeys({ transactor: dying }));
    await Promise.all([run(), run()]);
    await run();
    t.same(await countOf(urls.superuser, 'key.suspended'), { all, keys: all });
    t.same(await dbQuery(urls.superuser, 'select 1 from api_keys where suspended_at is null'), []);
    t.match((await admin.get('/v1/history/verify')).body, { flaws: [] });
  },
);

t.test('a service that stops ends the job between two batches', async (t) => {
  const service = await startWithJob(t, 30);
  const { urls, transactor, later, run } = service;
  const all = await addIdleKeys(service, 200);
  later(24 * day);
  const stopping = new AbortController();
  const first = { ...transactor, onAppended: async () => stopping.abort() };
  t.equal(await suspendIdleKeys({ transactor: first, signal: stopping.signal }), 100);
  t.equal(await run(), all - 100);
  t.same(await countOf(urls.superuser, 'key.idle_announced'), { all, keys: all });
});
