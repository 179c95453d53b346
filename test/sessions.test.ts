import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { sql } from 'kysely';
import type { Test } from 'tap';
import { connect } from '../src/database/client.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import { jobs } from '../src/jobs/list.ts';
import { type Json, startService } from './support/app.ts';
import { type ClusterUrls, clusterUrls } from './support/cluster.ts';
import { addDatabase, createDatabase, dbQuery, migrateAs, roleOf } from './support/database.ts';
import { dbDue, startReplica } from './support/jobs.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { poolerTo } from './support/pooler.ts';
import { eventually, runEntry } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// A session of Latchkey works the same, whatever settings its role or database has.

const hostile: Record<string, string> = {
  DateStyle: "'SQL, DMY'",
  TimeZone: "'Asia/Kathmandu'",
  IntervalStyle: "'sql_standard'",
  bytea_output: "'escape'",
  extra_float_digits: '-15',
  standard_conforming_strings: 'off',
  client_encoding: "'LATIN1'",
  search_path: 'hostile, pg_catalog',
  array_nulls: 'off',
  transform_null_equals: 'on',
  default_transaction_isolation: "'repeatable read'",
  default_transaction_read_only: 'on',
  default_transaction_deferrable: 'on',
  statement_timeout: '200',
  lock_timeout: '1',
  idle_in_transaction_session_timeout: '200',
  idle_session_timeout: '200',
  row_security: 'off',
  exit_on_error: 'on',
  'plpgsql.extra_errors': "'all'",
};

/**
 * Sets them for the database and for each role in it, which takes precedence. @returns resets them for the test's own
 * queries
 */
async function setEverywhere(urls: ClusterUrls, changes: Record<string, string>): Promise<() => Promise<void>> {
  const database = new URL(urls.superuser).pathname.slice(1);
  const roles = [urls.app, urls.owner].map((url) => `role ${roleOf(url)} in database ${database}`);
  const statements = [`database ${database}`, ...roles].flatMap((place) =>
    Object.entries(changes).map(([name, value]) => `alter ${place} set ${name} = ${value}`),
  );
  const clusterSuperuser = clusterUrls().superuser;
  await dbQuery(clusterSuperuser, statements.join('; '));
  return async () => void (await dbQuery(clusterSuperuser, `alter database ${database} reset all`));
}

/** Writes and reads of every kind. */
async function exercise(t: Test, urls: ClusterUrls, listenUrl = urls.app): Promise<void> {
  const client = connect({ url: urls.app, poolSize: 5, timeoutMs: 20_000 });
  t.teardown(() => client.close());
  const clock = createDatabaseClock();
  const transactor = { db: client.db, clock };
  // The test's own queries run as the superuser.
  const service = await startService(t, { urls, transactor, state: { listenUrl }, keyring: keyringOf('test') });
  const { admin, verifier, verification } = service;
  const email = `Zoe.${randomBytes(4).toString('hex')}@p.example`;
  const created = await admin.post('/v1/partners', { email, name: 'Zoë ☃', permissions: ['read'] });
  t.equal(created.status, 201);
  t.match(created.body, { name: 'Zoë ☃', keys: [{ key: /./ }] });
  const [key] = created.body.keys;
  const expiresAt = new Date(Date.now() + 3_600_000).toISOString();
  const patched = await admin.patch(`/v1/keys/${key.id}`, { expiresAt, metadata: { 'a\\b': 0.1 + 0.2, c: "it's" } });
  t.match(patched, { status: 200, body: { expiresAt } });
  const { body: read } = await admin.get(`/v1/keys/${key.id}`);
  t.match(read, { expiresAt, metadata: { 'a\\b': 0.1 + 0.2, c: "it's" } });
  t.equal(Math.abs(Date.parse(read.createdAt) - Date.now()) < 60_000, true);
  t.match(await admin.post(`/v1/keys/${key.id}/reveal`, {}), { status: 200, body: { key: key.key } });
  t.match(await verifier.post('/v1/verify', { key: key.key, permission: 'read' }), { body: { code: 'valid' } });
  const once = { 'idempotency-key': randomBytes(8).toString('hex') };
  for (const status of [201, 201]) t.equal((await admin.post('/v1/keys', { name: 'once' }, once)).status, status);
  const atOnce = await Promise.all(
    Array.from({ length: 4 }, (_, n) => admin.post('/v1/partners', { email: `${n}${email}`, permissions: ['read'] })),
  );
  t.same(
    atOnce.map(({ status }) => status),
    [201, 201, 201, 201],
  );
  t.equal((await admin.delete(`/v1/keys/${key.id}`)).status, 200);
  t.match(await verifier.post('/v1/verify', { key: key.key, permission: 'read' }), { body: { code: 'deleted' } });
  await verifier.get('/v1/keys');
  await verification.usage.flush();
  t.match((await admin.get(`/v1/keys/${key.id}/usage`)).body.total, { allowed: 1, denied: 1 });
  t.match(await eventually(async () => (await admin.get('/v1/history?kind=refused')).body.data[0]), { count: 1 });
  const from = new Date(Date.now() - 60_000).toISOString();
  const { body: history } = await admin.get(`/v1/history?from=${from}&limit=200`);
  t.ok(
    history.data.length > 8 && history.data.every(({ at }: Json) => Math.abs(Date.parse(at) - Date.now()) < 120_000),
  );
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
  t.equal((await admin.get(`/v1/partners?email=${email.toUpperCase()}`)).body.data.length, 1);
  await eventually(async () => verification.feed.isLive());
  // One statement and one idle transaction, both longer than any of the timeouts.
  await client.db.transaction().execute(async (tx) => {
    await sql`select pg_sleep(0.3)`.execute(tx);
    await delay(300);
    await sql`select 1`.execute(tx);
  });
}

for (const [name, value] of Object.entries(hostile)) {
  t.test(`with ${name} = ${value} the service works as always`, async (t) => {
    const urls = await createDatabase(t);
    const reset = await setEverywhere(urls, { [name]: value });
    await exercise(t, urls);
    await reset();
  });
}

t.test('with all hostile settings at once, migrations, jobs and commands work', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  await dbQuery(urls.superuser, 'create schema hostile');
  const reset = await setEverywhere(urls, hostile);
  t.ok((await migrateAs(urls)).length > 0);
  await exercise(t, urls);

  const runner = startReplica(t, urls.app, jobs);
  // The roles keep the settings; the test itself uses the superuser.
  await reset();
  await eventually(async () => (await dbQuery(urls.superuser, 'select 1 from job_runs')).length === jobs.length);
  await dbDue({ ...urls, app: urls.superuser }, 'fold_usage');
  await eventually(async () => runner.logLines.join('').includes('A job succeeded.'), 20_000);
  t.notMatch(runner.logLines.join(''), 'A job failed');

  const env = { DATABASE_URL: urls.app, MIGRATION_DATABASE_URL: urls.owner, LATCHKEY_KEYRING: keyringText('test') };
  for (const args of [['migrate', '--status'], ['migrate'], ['audit', 'verify']]) {
    const command = runEntry(t, 'cli/latchkey.ts', args, { env: { ...env, APP_ROLE: roleOf(urls.app) } });
    t.equal((await command.exited).code, 0, `${args.join(' ')}: ${command.output()}`);
  }
  const doctor = runEntry(t, 'cli/latchkey.ts', ['doctor'], { env });
  await doctor.exited;
  t.match(doctor.output(), /^note {4}DateStyle is set to SQL, DMY for the role or the database\. .*pooler/m);
});

t.test(
  'with hostile settings through a transaction pooler, the service works as always',
  { skip: unlessInstalled('pgbouncer') },
  async (t) => {
    const urls = await createDatabase(t);
    // A pooler does not carry settings to the next connection. Settings that break a statement or end a session must be
    // reset for the role, as doctor says.
    const breaking = ['search_path', 'statement_timeout', 'lock_timeout', /^idle_/];
    const others = Object.entries(hostile).filter(([name]) => !breaking.some((one) => name.match(one)));
    const reset = await setEverywhere(urls, Object.fromEntries(others));
    await exercise(t, { ...urls, app: await poolerTo(t, urls.app) }, urls.app);
    await reset();
  },
);

t.test('doctor names session_replication_role, which only a superuser can change', async (t) => {
  const { urls } = await startService(t, { keyring: keyringOf('test') });
  await setEverywhere(urls, { session_replication_role: 'replica' });
  const env = { DATABASE_URL: urls.app, MIGRATION_DATABASE_URL: urls.owner, LATCHKEY_KEYRING: keyringText('test') };
  const doctor = runEntry(t, 'cli/latchkey.ts', ['doctor'], { env });
  t.equal((await doctor.exited).code, 1);
  t.match(doctor.output(), /^wrong {3}Not so: Foreign keys are checked .* session_replication_role is replica/m);
});

async function databaseOf(t: Test, how: string): Promise<ClusterUrls> {
  const { urls, drop } = await addDatabase(clusterUrls(), `template template0 ${how}`);
  t.teardown(drop);
  return urls;
}

t.test('a database whose encoding cannot store every text is rejected by commands and at the start', async (t) => {
  for (const encoding of ['LATIN1', 'SQL_ASCII']) {
    const urls = await databaseOf(t, `encoding '${encoding}' locale_provider libc lc_collate 'C' lc_ctype 'C'`);
    const env = { DATABASE_URL: urls.app, MIGRATION_DATABASE_URL: urls.owner, LATCHKEY_KEYRING: keyringText('test') };
    for (const [entry, args] of [
      ['cli/latchkey.ts', ['migrate']],
      ['cli/latchkey.ts', ['serve']],
      ['cli/latchkey.ts', ['doctor']],
    ] as const) {
      const process = runEntry(t, entry, [...args], { env });
      const { code } = await process.exited;
      t.equal(code, args[0] === 'doctor' ? 1 : 78, `${args[0]}: ${process.output()}`);
      t.match(process.output(), `has the encoding ${encoding}, but Latchkey needs UTF8`);
    }
    t.same(await dbQuery(urls.superuser, "select to_regclass('organizations') as made"), [{ made: null }]);
  }
});

t.test("uniqueness of e-mail addresses does not depend on the database's locale", async (t) => {
  const turkish = "encoding 'UTF8' locale_provider icu icu_locale 'tr-TR' locale 'C'";
  const urls = await databaseOf(t, turkish);
  await migrateAs(urls);
  const { admin } = await startService(t, { urls });
  const createPartner = (email: string) => admin.post('/v1/partners', { email, permissions: ['read'] });
  t.equal((await createPartner('INFO@P.EXAMPLE')).status, 201);
  t.match(await createPartner('info@p.example'), { status: 409, body: { code: 'partner_exists' } });
  t.equal((await admin.get('/v1/partners?email=Info@p.example')).body.data.length, 1);
  t.equal((await admin.get(`/v1/partners?email=${encodeURIComponent('İnfo@p.example')}`)).body.data.length, 0);
});

t.test("no index of Latchkey depends on the database's locale", async (t) => {
  const urls = await createDatabase(t);
  const sorted = await dbQuery(
    urls.superuser,
    `select indexrelid::regclass::text as index from pg_index
     join pg_class on pg_class.oid = indrelid, unnest(indcollation) as used (oid)
     where relnamespace = 'public'::regnamespace and relname not like 'schema_migrations%'
       and used.oid <> 0 and used.oid <> '"C"'::regcollation`,
  );
  t.same(sorted, []);
});
