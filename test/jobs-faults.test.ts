import type { Test } from 'tap';
import { connect, type Db } from '../src/database/client.ts';
import { doubleReleaseSafePool } from '../src/jobs/graphile-worker.ts';
import { listJobRuns } from '../src/jobs/store.ts';
import type { ClusterUrls } from './support/cluster.ts';
import { createDatabase, dbQuery, migrateAs, roleOf } from './support/database.ts';
import { dbDue, dbMissed, dbQueue, makeJob, startReplica } from './support/jobs.ts';
import { eventually, runCompiled } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { dbEndSessions, dbSessions } from './support/sessions.ts';
import { t } from './support/tap.ts';

async function openDatabase(t: Test): Promise<{ urls: ClusterUrls; db: Db }> {
  const urls = await createDatabase(t);
  const client = connect({ url: urls.app, poolSize: 2 });
  t.teardown(() => client.close());
  return { urls, db: client.db };
}

const runOf = async (db: Db, name: string) => (await listJobRuns(db)).find((run) => run.name === name);
const hasSucceeded = async (db: Db, name: string) => (await runOf(db, name))?.last_succeeded_at != null;

t.test('a job whose worker was killed runs at its next due time, not earlier', async (t) => {
  const { urls, db } = await openDatabase(t);
  await dbMissed(urls, 'survivor');
  const killedWorker = runCompiled(t, 'test/support/hanging-job.ts', [urls.app, 'survivor']);
  await killedWorker.until(/it hangs/);
  killedWorker.child.kill('SIGKILL');
  await killedWorker.exited;
  t.match(await runOf(db, 'survivor'), { last_succeeded_at: null, last_failed_at: null });

  let runs = 0;
  const job = makeJob('survivor', async () => {
    runs += 1;
    return 1;
  });
  const second = startReplica(t, urls.app, [job]);
  await eventually(async () => /looking for jobs/.test(second.logLines.join('')));
  t.same(
    await dbQueue(urls),
    [{ name: 'survivor', key: 'survivor', locked: true }],
    'a job is not taken from a worker that may still live',
  );
  await dbDue(urls, 'survivor');
  await eventually(() => hasSucceeded(db, 'survivor'));
  t.equal(runs, 1);

  await t.test('its queue row is deleted once the lock is old', async (t) => {
    t.same(await dbQueue(urls), [{ name: 'survivor', key: null, locked: true }]);
    await dbQuery(urls.superuser, "update graphile_worker._private_jobs set locked_at = now() - interval '5 hours'");
    startReplica(t, urls.app, [job]);
    await eventually(async () => (await dbQueue(urls)).length === 0);
    t.equal(runs, 1);
  });
});

t.test('shutdown does not wait for a job that hangs, and the next service runs it', async (t) => {
  const { urls, db } = await openDatabase(t);
  let wasAborted = false;
  let end: () => void = () => undefined;
  const hanging = makeJob('patient', (deps) => {
    deps.signal.addEventListener('abort', () => {
      wasAborted = true;
    });
    return new Promise((resolve) => {
      end = () => resolve(0);
    });
  });
  const first = startReplica(t, urls.app, [hanging]);
  await eventually(async () => runOf(db, 'patient'));
  await dbDue(urls, 'patient');
  await eventually(async () => (await runOf(db, 'patient'))?.last_started_at != null);
  const startedAt = performance.now();
  await first.close();
  t.ok(performance.now() - startedAt < 7_000, 'within seconds');
  t.equal(wasAborted, true, 'the signal of the job was aborted');
  t.match(await dbQueue(urls), [{ name: 'patient', key: 'patient', locked: false }]);
  t.match(await runOf(db, 'patient'), { last_failed_at: null }, 'an interrupted job has not failed');
  end();
  startReplica(t, urls.app, [makeJob('patient', async () => 1)]);
  await eventually(async () => (await runOf(db, 'patient'))?.last_count === 1);
});

t.test('an idle replica leaves no connection at shutdown', async (t) => {
  const { urls, db } = await openDatabase(t);
  const replica = startReplica(t, urls.app, [makeJob('idle', async () => 0)]);
  await eventually(async () => runOf(db, 'idle'));
  const connections = async () => (await dbSessions(urls.superuser, 'usename = $1', [roleOf(urls.app)])).length;
  await eventually(async () => (await connections()) >= 3);
  await replica.close();
  t.match(replica.logLines.join(''), /Graceful shutdown complete/);
  await eventually(async () => (await connections()) === 1, 1_000);
});

t.test('killed connections end neither the jobs nor the process', async (t) => {
  const { urls, db } = await openDatabase(t);
  let runs = 0;
  const job = makeJob('steadfast', async ({ transactor }) => {
    await transactor.db.selectFrom('job_runs').select('name').execute();
    runs += 1;
    return 1;
  });
  startReplica(t, urls.app, [job]);
  startReplica(t, urls.app, [job]);
  await eventually(async () => runOf(db, 'steadfast'));
  const kill = () => dbEndSessions(urls.superuser, "usename = $1 and application_name <> 'test'", [roleOf(urls.app)]);
  for (let round = 0; round < 60; round++) {
    await dbQuery(urls.superuser, "select graphile_worker.add_job('steadfast', job_key := 'steadfast')");
    await kill();
  }
  const before = runs;
  await dbQuery(urls.superuser, "select graphile_worker.add_job('steadfast', job_key := 'steadfast')");
  await eventually(async () => runs > before, 60_000);
});

t.test('a runner whose first read of the queue fails is restarted', async (t) => {
  const { urls, db } = await openDatabase(t);
  // The first insert of task names fails. A sequence counts the attempts, because a rollback does not reset it.
  await dbQuery(
    urls.superuser,
    `create sequence public.task_reads;
     grant usage on sequence public.task_reads to public;
     create function public.fail_first() returns trigger language plpgsql as $$
     begin
       if nextval('public.task_reads') = 1 then raise exception 'the first read fails'; end if;
       return null;
     end $$;
     create trigger fail_first before insert on graphile_worker._private_tasks
       for each statement execute function public.fail_first()`,
  );
  const replica = startReplica(t, urls.app, [makeJob('patient', async () => 1)]);
  await eventually(async () => /the first read fails/.test(replica.logLines.join('')));
  await dbDue(urls, 'patient');
  await eventually(() => hasSucceeded(db, 'patient'));
});

t.test('jobs resume by themselves if the database is unavailable at the start or later', async (t) => {
  const { urls, db } = await openDatabase(t);
  const proxy = await proxyTo(t, urls.app);
  let runs = 0;
  const job = makeJob(
    'returning',
    async () => {
      runs += 1;
      return 1;
    },
    '*/5 * * * *',
  );
  proxy.refuse(true);
  const replica = startReplica(t, proxy.url, [job]);
  await eventually(async () => /jobs cannot run/.test(replica.logLines.join('')));
  await dbMissed(urls, 'returning');
  proxy.refuse(false);
  await eventually(() => hasSucceeded(db, 'returning'));
  t.equal(runs, 1, 'the missed run is caught up');

  const loggedBefore = replica.logLines.length;
  proxy.refuse(true);
  proxy.end();
  await eventually(async () => /trying again|Latchkey will retry/.test(replica.logLines.slice(loggedBefore).join('')));
  proxy.refuse(false);
  await dbDue(urls, 'returning');
  await eventually(async () => runs >= 2, 60_000);

  await t.test('shutdown takes only seconds while the database is unavailable', async (t) => {
    proxy.refuse(true);
    proxy.end();
    const startedAt = performance.now();
    await replica.close();
    t.ok(performance.now() - startedAt < 7_000);
    proxy.refuse(false);
  });
});

t.test('the service never migrates the job schema, not even as the owner, but waits for it', async (t) => {
  for (const asRole of ['app', 'owner'] as const) {
    const { urls, db } = await openDatabase(t);
    await dbQuery(urls.owner, 'drop schema graphile_worker cascade');
    let runs = 0;
    const job = makeJob('late', async () => {
      runs += 1;
      return 1;
    });
    const replica = startReplica(t, urls[asRole], [job]);
    await eventually(async () => /graphile_worker@19 not applied/.test(replica.logLines.join('')));
    t.same(await dbQuery(urls.owner, "select to_regnamespace('graphile_worker') as there"), [{ there: null }]);
    t.same(await migrateAs(urls), ['graphile_worker@19']);
    await eventually(async () => runOf(db, 'late'));
    await dbDue(urls, 'late');
    await eventually(async () => runs === 1);
  }
});

t.test('releasing a connection twice, as graphile-worker does, has no effect', async (t) => {
  const { urls } = await openDatabase(t);
  const { pool, close } = connect({ url: urls.app, poolSize: 1 });
  t.teardown(close);
  const safePool = doubleReleaseSafePool(pool);
  await new Promise<void>((resolve) => {
    safePool.connect((_error, _client, release) => {
      release();
      release();
      resolve();
    });
  });
  t.same((await safePool.query('select 1 as one')).rows, [{ one: 1 }]);
  const client = await safePool.connect();
  client.release();
});
