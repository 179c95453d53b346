import { readFile } from 'node:fs/promises';
import type { Test } from 'tap';
import { connect, type Db } from '../src/database/client.ts';
import { newId } from '../src/domain/ids.ts';
import { jobs } from '../src/jobs/list.ts';
import { describeError, periodMsOf, stateOf } from '../src/jobs/policy.ts';
import { type JobRun, listJobRuns } from '../src/jobs/store.ts';
import { type Json, startService } from './support/app.ts';
import { createTestClock } from './support/clock.ts';
import type { ClusterUrls } from './support/cluster.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { dbDue, dbMissed, dbQueue, makeJob, startReplica } from './support/jobs.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

const hourMs = 3_600_000;

async function openDatabase(t: Test): Promise<{ urls: ClusterUrls; db: Db }> {
  const urls = await createDatabase(t);
  const client = connect({ url: urls.app, poolSize: 2 });
  t.teardown(() => client.close());
  return { urls, db: client.db };
}

const runOf = async (db: Db, name: string) => (await listJobRuns(db)).find((run) => run.name === name);

/** Waits for the start of a real minute, so it starts first and is checked last. */
const atTheMinute = (async () => {
  const { urls, db } = await openDatabase(t);
  const ran: number[] = [];
  const job = makeJob('every_minute', async () => ran.push(Date.now()), '* * * * *');
  for (let replica = 0; replica < 3; replica++) startReplica(t, urls.app, [job]);
  await eventually(async () => (await runOf(db, job.name))?.last_succeeded_at != null, 90_000);
  await eventually(async () => (await dbQueue(urls)).length === 0);
  return ran;
})();

t.test('a run is recorded with its time, duration and count', async (t) => {
  const { urls, db } = await openDatabase(t);
  startReplica(t, urls.app, [makeJob('count_to_three', async () => 3)]);
  await eventually(async () => runOf(db, 'count_to_three'));
  t.match(await runOf(db, 'count_to_three'), { last_started_at: null, last_succeeded_at: null, last_count: null });
  await dbDue(urls, 'count_to_three');
  const run = await eventually(async () => {
    const found = await runOf(db, 'count_to_three');
    return found?.last_succeeded_at !== null && found;
  });
  t.match(run, { last_count: 3, last_failed_at: null, last_error: null });
  t.type(run.last_duration_ms, 'number');
  t.ok(run.last_started_at !== null && run.last_succeeded_at !== null && run.last_started_at <= run.last_succeeded_at);
});

t.test('a failed job is retried, and its stored error contains no secret', async (t) => {
  const { urls, db } = await openDatabase(t);
  const secret = `lk_k_${'0'.repeat(26)}_${'aB3'.repeat(16)}`;
  let attempts = 0;
  const replica = startReplica(t, urls.app, [
    makeJob('fail_once', async () => {
      attempts += 1;
      if (attempts === 1) throw Object.assign(new Error(`it met ${secret}`), { code: '23505' });
      return 1;
    }),
  ]);
  await eventually(async () => runOf(db, 'fail_once'));
  await dbDue(urls, 'fail_once');
  const failed = await eventually(async () => {
    const run = await runOf(db, 'fail_once');
    return run?.last_failed_at !== null && run;
  });
  t.equal(failed.last_error, 'Error 23505: it met lk_k_…_…');
  t.notMatch(replica.logLines.join(''), 'aB3aB3aB3aB3');
  const succeeded = await eventually(async () => {
    const run = await runOf(db, 'fail_once');
    return run?.last_succeeded_at != null && run;
  });
  t.ok(
    succeeded.last_failed_at !== null &&
      succeeded.last_succeeded_at !== null &&
      succeeded.last_failed_at < succeeded.last_succeeded_at,
  );
});

t.test('a missed run is caught up once, even if several replicas start at once', async (t) => {
  const { urls, db } = await openDatabase(t);
  const ran: string[] = [];
  const names = ['first', 'second', 'third', 'fourth', 'fifth'];
  const missed = names.map((name) => makeJob(name, async () => ran.push(name), '*/5 * * * *'));
  for (const name of names) await dbMissed(urls, name);
  for (let replica = 0; replica < 4; replica++) startReplica(t, urls.app, missed);
  await eventually(async () => (await listJobRuns(db)).filter((run) => run.last_succeeded_at !== null).length === 5);
  await eventually(async () => (await dbQueue(urls)).length === 0);
  t.same(ran.sort(), [...names].sort());
});

t.test('a new job is not run before it is due', async (t) => {
  const { urls, db } = await openDatabase(t);
  startReplica(t, urls.app, [makeJob('newcomer', async () => 1, '*/5 * * * *')]);
  await eventually(async () => runOf(db, 'newcomer'));
  await dbDue(urls, 'newcomer');
  const run = await eventually(async () => {
    const found = await runOf(db, 'newcomer');
    return found?.last_succeeded_at !== null && found;
  });
  t.equal(
    stateOf(
      makeJob('newcomer', async () => 1, '*/5 * * * *'),
      run,
      new Date(),
    ),
    'good',
  );
});

t.test('a running job is not started in another process', async (t) => {
  const { urls, db } = await openDatabase(t);
  let running = 0;
  let most = 0;
  let end: () => void = () => undefined;
  const slow = makeJob('slow', async () => {
    running += 1;
    most = Math.max(most, running);
    await new Promise<void>((resolve) => {
      end = resolve;
    });
    running -= 1;
    return 1;
  });
  const replicas = [startReplica(t, urls.app, [slow]), startReplica(t, urls.app, [slow])];
  await eventually(async () => runOf(db, 'slow'));
  await dbDue(urls, 'slow');
  await eventually(async () => running === 1);
  await dbDue(urls, 'slow');
  await eventually(async () =>
    replicas.some(({ logLines }) => /still running in another process/.test(logLines.join(''))),
  );
  end();
  await eventually(async () => (await runOf(db, 'slow'))?.last_succeeded_at != null);
  t.equal(most, 1);
});

t.test('hours of usage are aggregated into days, except those within the retention', async (t) => {
  const { urls, db } = await openDatabase(t);
  const organizationId = newId('org');
  const keyId = newId('key');
  const today = Date.now() - (Date.now() % (24 * hourMs));
  const add = (hour: number) =>
    dbQuery(urls.app, 'insert into usage_hours values ($1, null, $2, $3, 2, 1, 0)', [
      organizationId,
      keyId,
      new Date(hour),
    ]);
  const old = today - 3 * 24 * hourMs;
  for (const hour of [old, old + hourMs, old + 23 * hourMs, today - 24 * hourMs, today]) await add(hour);
  await dbMissed(urls, 'fold_usage');
  startReplica(t, urls.app, jobs, { usageHourlyDays: 2 });
  await eventually(async () => (await runOf(db, 'fold_usage'))?.last_count === 3);
  const days = await dbQuery(urls.app, 'select day, allowed, denied from usage_days');
  t.same(days, [{ day: new Date(old), allowed: '6', denied: '3' }]);
  t.equal((await dbQuery(urls.app, 'select 1 from usage_hours')).length, 2);
});

t.test("each job finds due items and works with the rights of the service's role", async (t) => {
  const service = await startService(t);
  const { urls, admin, verifier, client } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  await admin.post('/v1/webhooks', { url: 'http://127.0.0.1:9/', events: ['webhook.created'] });
  await admin.patch('/v1/organization', { idleSuspendAfterDays: 30 });
  const day = 24 * hourMs;
  const expiresAt = new Date(Date.now() + 33 * day).toISOString();
  const { body: kept } = await admin.post('/v1/keys', { expiresAt }, { 'idempotency-key': 'kept for a day' });
  await admin.post('/v1/claims', { keyId: kept.id });
  await admin.delete(`/v1/keys/${partner.keys[0].id}`);
  await verifier.post('/v1/verify', { key: partner.keys[0].key, permission: 'read' });
  await service.verification.usage.flush();
  await dbQuery(urls.superuser, "update usage_hours set hour = hour - interval '9 days'");
  await verifier.get('/v1/keys');
  const aged = "update refused_attempts set hour = hour - interval '60 days' returning 1";
  await eventually(async () => (await dbQuery(urls.superuser, aged)).length === 1);
  await dbQuery(urls.superuser, 'insert into expiry_notices values ($1, now(), 1)', [partner.keys[0].id]);
  await dbQuery(urls.superuser, "insert into leak_reports values ($1, now(), sha256(''), 'notify')", [
    partner.keys[0].id,
  ]);
  const { body: other } = await service.operator.post('/v1/organizations', { name: 'Other' });
  await service.operator.post('/v1/keys', {}, { 'latchkey-organization': other.id });
  await dbQuery(urls.superuser, "update organizations set key_reveal = 'never' where id = $1", [other.id]);
  for (const { name } of jobs) await dbMissed(urls, name);
  startReplica(t, urls.app, jobs, { clock: createTestClock(31 * day) });
  for (const { name } of jobs) {
    const run = await eventually(async () => {
      const found = await runOf(client.db, name);
      return found?.last_succeeded_at != null && found;
    });
    t.equal(run.last_count, 1, `${name} processed one item`);
  }
  const { body: history } = await admin.get('/v1/history');
  const recorded = new Set(history.data.map(({ action }: Json) => action));
  t.ok(recorded.has('key.purged') && recorded.has('key.expiry_announced'), [...recorded].join(', '));
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('every job has a unique name that fits a metric, a description and a valid schedule', async (t) => {
  t.equal(new Set(jobs.map(({ name }) => name)).size, jobs.length);
  for (const { name, description, schedule } of jobs) {
    t.match(name, /^[a-z]+(_[a-z]+)*$/);
    t.match(description, /^[A-Z].*\.$/);
    t.ok(periodMsOf(schedule, new Date()) >= 60_000);
  }
});

t.test('docs/jobs.md lists every job', async (t) => {
  const page = await readFile('docs/jobs.md', 'utf8');
  const listed = [...page.matchAll(/^\| `(\w+)` \| .* \| (.*) \|$/gm)].map(([, name, description]) => ({
    name,
    description,
  }));
  t.same(
    listed,
    jobs.map(({ name, description }) => ({ name, description })),
  );
});

t.test('the period of a schedule is the time between two due times', async (t) => {
  const now = new Date('2026-03-01T12:34:56Z');
  const days = 24 * hourMs;
  for (const [schedule, periodMs] of [
    ['* * * * *', 60_000],
    ['*/5 * * * *', 300_000],
    ['7 * * * *', hourMs],
    ['30 3 * * *', days],
    ['0 4 * * 1', 7 * days],
    ['0 0 1 * *', 28 * days],
    ['0 0 1 1 *', 365 * days],
  ] as const) {
    t.equal(periodMsOf(schedule, now), periodMs, schedule);
  }
  t.throws(() => periodMsOf('0 0 31 2 *', now), /never due/);
  t.throws(() => periodMsOf('whenever', now));
});

t.test('the state of a job follows from its recorded runs', async (t) => {
  const now = new Date('2026-03-01T12:00:00Z');
  const ago = (hours: number) => new Date(now.getTime() - hours * hourMs);
  const job = makeJob('hourly', async () => 0, '7 * * * *');
  const run: JobRun = {
    name: 'hourly',
    first_seen_at: ago(100),
    last_started_at: null,
    last_succeeded_at: null,
    last_failed_at: null,
    last_error: null,
    last_count: null,
    last_duration_ms: null,
  };
  t.equal(stateOf(job, undefined, now), 'not_started');
  t.equal(stateOf(job, { ...run, first_seen_at: ago(3) }, now), 'waiting');
  t.equal(stateOf(job, { ...run, first_seen_at: ago(3.1) }, now), 'overdue');
  t.equal(stateOf(job, { ...run, last_succeeded_at: ago(3) }, now), 'good');
  t.equal(stateOf(job, { ...run, last_succeeded_at: ago(3.1) }, now), 'overdue');
  t.equal(stateOf(job, { ...run, last_succeeded_at: ago(2), last_failed_at: ago(1) }, now), 'failed');
  t.equal(stateOf(job, { ...run, last_succeeded_at: ago(1), last_failed_at: ago(2) }, now), 'good');
  t.equal(stateOf(job, { ...run, first_seen_at: ago(2), last_failed_at: ago(1) }, now), 'failed');
  t.equal(stateOf(job, { ...run, last_succeeded_at: ago(9), last_failed_at: ago(1) }, now), 'overdue');
});

t.test('an error is stored with its name, its code and a message without secrets', async (t) => {
  t.equal(describeError(new TypeError('x is not a function')), 'TypeError: x is not a function');
  t.equal(describeError('thrown'), 'string');
  t.equal(describeError(new Error(`hash ${'f'.repeat(64)} of ${'Zm9v'.repeat(11)}=`)), 'Error: hash … of …');
  t.equal(describeError(new Error('long '.repeat(100))).length, 'Error: '.length + 200);
});

t.test('three replicas run a due job once', async (t) => {
  const ran = await atTheMinute;
  t.equal(ran.length, 1);
  t.ok(Number(ran[0]) % 60_000 < 20_000, 'shortly after the start of the minute');
});
