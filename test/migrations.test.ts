import { connect } from '../src/database/client.ts';
import { migrationStatus, requireCurrentSchema, tryMigrations } from '../src/database/migrator.ts';
import { startService } from './support/app.ts';
import { createDatabase, dbQuery, migrateAs, roleOf } from './support/database.ts';
import { eventually, runEntry } from './support/process.ts';
import { dbEndSessions, dbSessions, holdTransaction } from './support/sessions.ts';
import { t } from './support/tap.ts';

const newest = ['0001-initial', 'graphile_worker@19'];

t.test('an empty database is migrated to the current schema, and a second run does nothing', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  t.same(await migrateAs(urls), newest);
  t.same(await migrateAs(urls), []);
});

t.test('concurrent migrations wait for each other, and all succeed', async (t) => {
  for (let round = 0; round < 5; round++) {
    const urls = await createDatabase(t, { migrated: false });
    const results = await Promise.all([migrateAs(urls), migrateAs(urls), migrateAs(urls)]);
    t.same(results.flat().sort(), newest);
  }
});

t.test('a migration reads no table while another migration changes it', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  const other = await holdTransaction(t, urls.owner, "select pg_advisory_xact_lock(hashtext('latchkey migration'))");
  const migrated = migrateAs(urls);
  await eventually(async () => {
    const waiting = await dbSessions(
      urls.superuser,
      "query like '%pg_try_advisory_xact_lock(hashtext(''latchkey migration''))%'",
    );
    return waiting.length === 1;
  });
  t.same(await dbQuery(urls.superuser, "select 1 from pg_tables where schemaname = 'public'"), []);
  await other.query('commit');
  t.same(await migrated, newest);
});

t.test('a killed migration leaves nothing, and the next one completes', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  const owner = roleOf(urls.owner);
  // The run waits at its last table, which another session is about to create, and is killed there.
  const blocker = await holdTransaction(t, urls.owner, 'create table history (blocked int)');
  const hanging = migrateAs(urls);
  hanging.catch(() => undefined);
  for (;;) {
    const ended = await dbEndSessions(urls.superuser, "usename = $1 and wait_event_type = 'Lock'", [owner]);
    if (ended.length > 0) break;
  }
  await t.rejects(hanging);
  await blocker.query('rollback');
  t.same(await dbQuery(urls.superuser, "select to_regclass('organizations') as left_over"), [{ left_over: null }]);
  t.same(await migrateAs(urls), newest);
});

t.test('status and dry run print, and change nothing', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  const { db, close } = connect({ url: urls.owner, poolSize: 2 });
  t.teardown(close);
  const names = async () => {
    const { applied, pending, unknown } = await migrationStatus(db);
    return [applied, pending, unknown].map((steps) => steps.map(({ name }) => name));
  };
  t.same(await names(), [[], newest, []]);
  t.same(await tryMigrations(db), { applied: newest, blocked: [] });
  t.same(await names(), [[], newest, []]);
  await migrateAs(urls);
  t.same(await names(), [newest, [], []]);
  t.same(await tryMigrations(db), { applied: [], blocked: [] });
});

/** What a newer version leaves behind. @param requires null: the migration only adds */
const applyLater = (url: string, requires: string | null) =>
  dbQuery(url, "insert into schema_migrations (name, requires) values ('9999-later', $1)", [requires]);

t.test(
  'the service rejects a missing or older schema, and one without what it uses, and says what to do',
  async (t) => {
    const missing = await createDatabase(t, { migrated: false });
    const older = await createDatabase(t);
    await dbQuery(older.owner, 'delete from schema_migrations');
    const contracted = await createDatabase(t);
    await applyLater(contracted.owner, '9998-earlier');
    for (const [urls, message] of [
      [missing, /no Latchkey schema yet.*`latchkey migrate`/],
      [older, /0001-initial.* not applied.*`latchkey migrate`/],
      [contracted, /newer Latchkey.*9999-later/],
    ] as const) {
      const { db, close } = connect({ url: urls.owner, poolSize: 1 });
      await t.rejects(requireCurrentSchema(db), { name: 'SchemaMismatch', message });
      await close();
    }
    await t.rejects(migrateAs(contracted), { name: 'SchemaMismatch' });
  },
);

t.test('a newer schema is accepted if it has only more, or lacks only what this version no longer uses', async (t) => {
  for (const requires of [null, '0001-initial']) {
    const urls = await createDatabase(t);
    await applyLater(urls.owner, requires);
    const { db, close } = connect({ url: urls.app, poolSize: 1 });
    const { unknown } = await requireCurrentSchema(db);
    t.match(unknown, [{ name: '9999-later' }]);
    await close();
    const app = roleOf(urls.app);
    await dbQuery(urls.owner, `grant delete on partners to ${app}`);
    t.same(await migrateAs(urls), [], 'there is nothing to do for the older version');
    t.same(
      await dbQuery(urls.owner, "select has_table_privilege($1, 'partners', 'delete') as kept", [app]),
      [{ kept: true }],
      'what a newer version has granted stays granted',
    );
  }
});

t.test('readiness ends if the schema no longer has what the service uses', async (t) => {
  const { app, urls } = await startService(t);
  t.equal((await app.inject('/readyz')).statusCode, 200);
  await applyLater(urls.owner, null);
  t.equal((await app.inject('/readyz')).statusCode, 200);
  await dbQuery(urls.owner, "update schema_migrations set requires = '9999-later' where name = '9999-later'");
  const response = await app.inject('/readyz');
  t.equal(response.statusCode, 503);
  t.equal(response.json().code, 'unavailable');
  t.equal((await app.inject('/livez')).statusCode, 200);
});

t.test('without the right to create roles, migrate prints the two statements for an administrator', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  const env = { MIGRATION_DATABASE_URL: urls.owner, DATABASE_URL: urls.app, APP_ROLE: 'latchkey_role_that_is_missing' };
  const cli = runEntry(t, 'cli/latchkey.ts', ['migrate'], { env });
  t.equal((await cli.exited).code, 1);
  t.match(cli.output(), /create role "latchkey_role_that_is_missing" login;/);
  t.match(cli.output(), /alter role "latchkey_role_that_is_missing" password/);
});

t.test('only the service role can execute the functions of history', async (t) => {
  const urls = await createDatabase(t);
  const rows = await dbQuery(
    urls.superuser,
    `select proname, coalesce(array_agg(grantee::regrole::text order by 1) filter (where grantee <> proowner), '{}') as others
     from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) where proname like 'history_%' group by 1 order by 1`,
  );
  const app = roleOf(urls.app);
  t.same(rows, [
    { proname: 'history_append', others: [app] },
    { proname: 'history_begin', others: [app] },
    { proname: 'history_flaw', others: [] },
    { proname: 'history_is_canonical', others: [] },
    { proname: 'history_refuse_change', others: [] },
    { proname: 'history_refuse_removal', others: [] },
  ]);
});
