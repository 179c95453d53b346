import { readdirSync } from 'node:fs';
import path from 'node:path';
import { connect } from '../src/database/client.ts';
import { migrationStatus, requireCurrentSchema } from '../src/database/migrator.ts';
import { markSession } from '../src/database/replicas.ts';
import { lastBreakingRevision, workerRevision, workerTables } from '../src/database/worker-schema.ts';
import { createDatabase, dbQuery, migrateAs, roleOf } from './support/database.ts';
import { dbDue, dbQueue } from './support/jobs.ts';
import { eventually } from './support/process.ts';
import { dbEndSessions, holdTransaction } from './support/sessions.ts';
import { t } from './support/tap.ts';

t.test('the required revision is the newest one of the installed graphile-worker', async (t) => {
  const files = readdirSync(path.join('node_modules', 'graphile-worker', 'sql'));
  t.equal(Math.max(...files.map((file) => Number.parseInt(file, 10))), workerRevision);
  const urls = await createDatabase(t);
  t.same(await dbQuery(urls.superuser, 'select max(id) as id from graphile_worker.migrations'), [
    { id: workerRevision },
  ]);
  t.same(await dbQuery(urls.superuser, 'select max(id) as id from graphile_worker.migrations where breaking'), [
    { id: lastBreakingRevision },
  ]);
  const guarded = await dbQuery(
    urls.superuser,
    `select relname from pg_class where relnamespace = 'graphile_worker'::regnamespace and relrowsecurity order by 1`,
  );
  t.same(
    guarded.map(({ relname }) => relname),
    [...workerTables].sort(),
  );
});

t.test('the tables belong to the migrating role; the service can use them, but not alter them', async (t) => {
  const urls = await createDatabase(t);
  const owners = await dbQuery(
    urls.superuser,
    `select distinct relowner::regrole::text as owner from pg_class where relnamespace = 'graphile_worker'::regnamespace`,
  );
  t.same(owners, [{ owner: roleOf(urls.owner) }]);
  await dbDue(urls, 'anything');
  t.equal((await dbQuery(urls.app, 'select 1 from graphile_worker._private_jobs')).length, 1);
  for (const statement of [
    'alter table graphile_worker._private_jobs disable row level security',
    'drop table graphile_worker._private_jobs',
    'truncate graphile_worker._private_jobs',
    'create table graphile_worker.more (n int)',
    'insert into graphile_worker.migrations (id) values (20)',
    'drop policy latchkey_service on graphile_worker._private_jobs',
  ]) {
    await t.rejects(dbQuery(urls.app, statement), { code: '42501' }, statement);
  }
});

t.test("if a migration is killed inside graphile-worker's steps, the next one continues there", async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  // The migration waits for a lock at a type that the eleventh step creates, and is killed there.
  await dbQuery(
    urls.superuser,
    `create function hold() returns event_trigger language plpgsql as $$ begin perform pg_advisory_xact_lock(11); end $$;
     create event trigger hold on ddl_command_start when tag in ('CREATE TYPE') execute function hold();`,
  );
  const holder = await holdTransaction(t, urls.superuser, 'select pg_advisory_xact_lock(11)');
  const hanging = migrateAs(urls);
  hanging.catch(() => undefined);
  await eventually(async () => {
    const ended = await dbEndSessions(urls.superuser, "usename = $1 and wait_event = 'advisory'", [roleOf(urls.owner)]);
    return ended.length > 0;
  });
  await t.rejects(hanging);
  await holder.query('rollback');
  await dbQuery(urls.superuser, 'drop event trigger hold');

  const [reached] = await dbQuery(urls.superuser, 'select max(id) as id from graphile_worker.migrations');
  t.ok(Number(reached?.['id']) > 0 && Number(reached?.['id']) < workerRevision, `it got to step ${reached?.['id']}`);
  const service = connect({ url: urls.app, poolSize: 1 });
  t.teardown(() => service.close());
  t.same(await migrateAs(urls), [`graphile_worker@${workerRevision}`]);
  await requireCurrentSchema(service.db);
});

t.test('a missing, older, newer or unreadable schema is rejected with the reason', async (t) => {
  const cases = [
    ['missing', 'drop schema graphile_worker cascade', /graphile_worker@19 not applied.*`latchkey migrate`/],
    ['older', 'delete from graphile_worker.migrations where id > 18', /graphile_worker@19 not applied/],
    [
      'newer',
      'insert into graphile_worker.migrations (id, breaking) values (20, true), (21, false)',
      /newer Latchkey.*graphile_worker@21/,
    ],
    ['closed', 'revoke usage on schema graphile_worker from ROLE', /graphile_worker@19 not applied/],
  ] as const;
  for (const [name, statement, message] of cases) {
    const urls = await createDatabase(t);
    await dbQuery(urls.owner, statement.replace('ROLE', roleOf(urls.app)));
    const { db, close } = connect({ url: urls.app, poolSize: 1 });
    await t.rejects(requireCurrentSchema(db), { name: 'SchemaMismatch', message }, name);
    await close();
    if (name === 'newer') await t.rejects(migrateAs(urls), { name: 'SchemaMismatch', message });
  }
});

t.test('a newer schema that graphile-worker does not declare as breaking is accepted', async (t) => {
  const urls = await createDatabase(t);
  await dbQuery(urls.owner, 'insert into graphile_worker.migrations (id) values (20)');
  const { db, close } = connect({ url: urls.app, poolSize: 1 });
  t.teardown(close);
  t.match(await requireCurrentSchema(db), { unknown: [{ name: 'graphile_worker@20' }] });
});

t.test('a breaking step of graphile-worker waits until replicas with an older revision have ended', async (t) => {
  const urls = await createDatabase(t);
  await dbQuery(urls.owner, 'delete from graphile_worker.migrations where id > 18');
  const replica = connect({ url: urls.app, poolSize: 1 });
  t.teardown(() => replica.close());
  const session = await replica.pool.connect();
  await markSession(session, ['0001-initial', 'graphile_worker@18']);
  t.same(await migrateAs(urls), []);
  session.release(true);
  t.same(await migrateAs(urls), [`graphile_worker@${workerRevision}`]);
});

t.test('every migration grants the privileges again, to the current role', async (t) => {
  const urls = await createDatabase(t);
  const app = roleOf(urls.app);
  await dbQuery(
    urls.owner,
    `drop policy latchkey_service on graphile_worker._private_jobs;
     drop policy latchkey_service on graphile_worker._private_tasks;
     create policy latchkey_service on graphile_worker._private_tasks to public using (true) with check (false);
     revoke all on graphile_worker._private_jobs from ${app};`,
  );
  t.same(await migrateAs(urls), []);
  await dbDue(urls, 'anything');
  t.match(await dbQueue(urls), [{ name: 'anything' }]);
  const policies = await dbQuery(
    urls.superuser,
    `select tablename, roles::text[] from pg_policies where schemaname = 'graphile_worker' order by 1`,
  );
  t.same(
    policies,
    [...workerTables].sort().map((tablename) => ({ tablename, roles: [app] })),
  );
});

t.test('with one role for everything, jobs can also be enqueued', async (t) => {
  const urls = await createDatabase(t);
  await dbDue({ ...urls, app: urls.owner }, 'anything');
  const { db, close } = connect({ url: urls.owner, poolSize: 1 });
  t.teardown(close);
  await requireCurrentSchema(db);
  t.match(await migrationStatus(db), { pending: [], unknown: [] });
});
