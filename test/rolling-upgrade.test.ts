import type { Test } from 'tap';
import { runSoak, type SoakTally } from '../bench/soak-load.ts';
import { connect } from '../src/database/client.ts';
import { createDatabase, dbQuery, roleOf } from './support/database.ts';
import { eventually, request, runEntry } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { type Served, serve } from './support/served.ts';
import { t } from './support/tap.ts';
import { type LaterMigration, laterVersion, type Version } from './support/versions.ts';

// Replicas of several versions on one database. The later versions are this program with made-up migrations.

const expand: LaterMigration = {
  name: '0002-nicknames',
  kind: 'expand',
  statements: [
    "alter table api_keys add column nickname text not null default ''",
    "alter table partners add column nickname text not null default ''",
  ],
};
const index: LaterMigration = {
  name: '0003-nickname-index',
  kind: 'expand',
  outsideTransaction: true,
  statements: [
    'drop index concurrently if exists api_keys_by_nickname',
    'create index concurrently api_keys_by_nickname on api_keys (nickname)',
  ],
};
/** Version 0.2.0 uses the nicknames of keys instead of those of partners. */
const contract: LaterMigration = {
  name: '0004-no-partner-nicknames',
  kind: 'contract',
  requires: expand.name,
  statements: ['alter table partners drop column nickname'],
};

const generous = {
  LOG_LEVEL: 'info',
  CALLER_LIMIT: '1000000000',
  REVEAL_LIMIT: '1000000000',
  ARGON2_MEMORY_KIB: '8',
  ARGON2_TIME_COST: '1',
};

function asOwner({ env, urls }: Served): NodeJS.ProcessEnv {
  return { ...env, MIGRATION_DATABASE_URL: urls.owner, APP_ROLE: roleOf(urls.app) };
}

/** Starts a replica of a version, and waits until it listens. */
async function startReplica(t: Test, version: Version, env: NodeJS.ProcessEnv) {
  const process = version.run(t, 'server.ts', [], env);
  const [, url = ''] = await process.until(/Server listening at (http:\/\/[^"]+)"/);
  await process.until(/The change feed is connected/);
  return { process, url };
}

async function stop({ process }: Pick<Served, 'process'>): Promise<number | null> {
  process.child.kill('SIGTERM');
  return (await process.exited).code;
}

const hasColumn = async (url: string, table: string) =>
  (
    await dbQuery(
      url,
      "select 1 from pg_attribute where attrelid = $1::regclass and attname = 'nickname' and not attisdropped",
      [table],
    )
  ).length === 1;

t.test('old and new replicas serve side by side, and a contract waits until the old ones have ended', async (t) => {
  const old = await serve(t, generous);
  await old.process.until(/The change feed is connected/);
  const second = await laterVersion(t, '0.2.0', [expand, index]);
  const third = await laterVersion(t, '0.3.0', [expand, index, contract]);
  const env = asOwner(old);
  const target = (url: string) => ({
    url,
    adminToken: old.tokens['adminToken'] ?? '',
    verifierToken: old.tokens['verifierToken'] ?? '',
  });
  const load = (url: string, seconds: number): Promise<SoakTally> =>
    runSoak(target(url), { seconds, verifiers: 2, writers: 1, readers: 1, pauseMs: { verifiers: 5, others: 20 } });
  const works = (tally: SoakTally) => {
    t.same(tally.unexpected, []);
    t.ok(tally.allowed > 0 && Object.keys(tally.changes).length > 0, `${tally.allowed} verifications were allowed`);
  };

  const loaded = load(old.url, 12);
  // Two versions at once were left out: the third one meets a replica that does not know the second.
  const migrated = await third.latchkey(t, ['migrate'], env);
  t.equal(migrated.code, 1);
  t.match(migrated.output, /^applied: 0002-nicknames, 0003-nickname-index$/m);
  t.match(
    migrated.output,
    /^waiting: 0004-no-partner-nicknames, for 1 replica of an older version:\n +latchkey changes 0\.1\.0 /m,
  );
  t.match(migrated.output, /Replace these replicas by this version, then run `latchkey migrate` again/);
  t.ok(await hasColumn(old.urls.owner, 'partners'), 'what the old replica uses is still there');
  const status = await third.latchkey(t, ['migrate', '--status'], env);
  t.equal(status.code, 1);
  t.match(status.output, /^applied {2}0002-nicknames, expand$/m);
  t.match(
    status.output,
    /^pending {2}0004-no-partner-nicknames, contract, for versions that know 0002-nicknames\n +latchkey changes 0\.1\.0 /m,
  );
  t.match((await third.latchkey(t, ['migrate', '--dry-run'], env)).output, /^waiting: 0004-no-partner-nicknames/m);
  t.ok(await hasColumn(old.urls.owner, 'partners'), 'a dry run changes nothing');
  const asSuperuser = { ...env, MIGRATION_DATABASE_URL: old.urls.superuser };
  t.match(
    (await third.latchkey(t, ['migrate', '--status'], asSuperuser)).output,
    /^ +latchkey changes 0\.1\.0 .*, from \S+, since 20\S+Z$/m,
    'with the right to see it, the address and the time are printed',
  );
  t.match((await third.latchkey(t, ['doctor'], old.env)).output, /^note {4}0004-no-partner-nicknames is pending/m);

  const newest = await startReplica(t, third, { ...old.env, ...generous });
  works(await load(newest.url, 3));
  works(await loaded);
  t.equal((await request(`${old.url}/readyz`)).status, 200, 'the old replica is ready');
  const again = runEntry(t, 'server.ts', [], { env: { ...env, MIGRATE_ON_START: 'true' } });
  await again.until(/A newer version has migrated the database\. This version works with it\./);
  await again.until(/The change feed is connected/);
  t.equal(await stop({ process: again }), 0, 'the old version can start again, and migrates nothing');
  t.equal(await stop(old), 0);

  const middle = await startReplica(t, second, { ...old.env, ...generous });
  const stillServed = load(middle.url, 6);
  t.match(await third.latchkey(t, ['migrate'], env), { code: 0, output: 'applied: 0004-no-partner-nicknames\n' });
  t.notOk(await hasColumn(old.urls.owner, 'partners'));
  works(await stillServed);
  t.equal(await stop(middle), 0);
  const back = await startReplica(t, second, { ...old.env, ...generous });
  t.equal((await request(`${back.url}/readyz`)).status, 200, 'one can go back by one version');

  const tooOld = runEntry(t, 'server.ts', [], { env: old.env });
  t.equal((await tooOld.exited).code, 1);
  t.match(
    tooOld.output(),
    /migrated by a newer Latchkey \(0004-no-partner-nicknames is unknown here, and removes what this version uses\)/,
  );
  const tooOldToMigrate = runEntry(t, 'cli/latchkey.ts', ['migrate', '--status'], { env });
  t.equal((await tooOldToMigrate.exited).code, 1);
  t.match(tooOldToMigrate.output(), /^unknown {2}0004-no-partner-nicknames.*migrated by a newer Latchkey/ms);
});

t.test('a migration at the start leaves a contract pending while older replicas run', async (t) => {
  const old = await serve(t);
  await old.process.until(/The change feed is connected/);
  const third = await laterVersion(t, '0.3.0', [expand, contract]);
  const env = { ...asOwner(old), MIGRATE_ON_START: 'true' };
  const first = await startReplica(t, third, env);
  t.match(first.process.output(), /"applied":\["0002-nicknames"\]/);
  t.match(
    first.process.output(),
    /"migration":"0004-no-partner-nicknames".*waits until replicas of older versions have ended/,
  );
  t.equal((await request(`${first.url}/readyz`)).status, 200);
  await stop(old);
  const next = await startReplica(t, third, env);
  t.match(next.process.output(), /"applied":\["0004-no-partner-nicknames"\]/);
});

t.test('a replica that was cut off during a contract ends as soon as it reconnects, and says why', async (t) => {
  const urls = await createDatabase(t);
  const proxy = await proxyTo(t, urls.app);
  const old = await serve(t, { LISTEN_DATABASE_URL: proxy.url }, { urls });
  await old.process.until(/The change feed is connected/);
  const third = await laterVersion(t, '0.3.0', [expand, contract]);
  proxy.refuse(true);
  proxy.end();
  await old.process.until(/The change feed is disconnected/);
  const migrated = third.latchkey(t, ['migrate'], asOwner(old));
  t.match(await migrated, { code: 0, output: 'applied: 0002-nicknames, 0004-no-partner-nicknames\n' });
  t.equal((await fetch(`${old.url}/readyz`)).status, 503);
  proxy.refuse(false);
  t.equal((await old.process.exited).code, 1);
  t.match(
    old.process.output(),
    /"level":60,.*migrated by a newer Latchkey \(0004-no-partner-nicknames is unknown here/,
  );
});

t.test('a replica that is just reconnecting counts as running', async (t) => {
  const urls = await createDatabase(t);
  const proxy = await proxyTo(t, urls.app);
  const old = await serve(t, { LISTEN_DATABASE_URL: proxy.url }, { urls });
  await old.process.until(/The change feed is connected/);
  const third = await laterVersion(t, '0.3.0', [expand, contract]);
  proxy.refuse(true);
  proxy.end();
  const migrated = third.latchkey(t, ['migrate'], asOwner(old));
  // The contract has begun: it excludes older replicas.
  await eventually(async () => {
    const held = await dbQuery(
      urls.superuser,
      "select 1 from pg_locks where locktype = 'advisory' and objsubid = 2 and mode = 'ExclusiveLock' and database = (select oid from pg_database where datname = current_database())",
    );
    return held.length > 0;
  });
  proxy.refuse(false);
  t.match(await migrated, { code: 1, output: /waiting: 0004-no-partner-nicknames, for 1 replica/ });
  t.ok(await hasColumn(urls.owner, 'partners'));
  await eventually(async () => (await fetch(`${old.url}/readyz`)).ok);
  await old.process.until(/connected.*disconnected.*is connected/s);
});

t.test('an expanding migration does not queue behind a long transaction, and says what to do', async (t) => {
  const old = await serve(t);
  const second = await laterVersion(t, '0.2.0', [expand]);
  const { pool, close } = connect({ url: old.urls.owner, poolSize: 1 });
  t.teardown(close);
  const session = await pool.connect();
  await session.query('begin; select count(*) from partners');
  const failed = second.latchkey(t, ['migrate'], asOwner(old));
  await eventually(async () => {
    const waiting = await dbQuery(
      old.urls.superuser,
      "select 1 from pg_locks where relation = 'partners'::regclass and not granted",
    );
    return waiting.length > 0;
  });
  const startedAtMs = performance.now();
  const partners = await request(`${old.url}/v1/partners`, { token: old.tokens['adminToken'] ?? '' });
  t.equal(partners.status, 200, 'a request waits with the migration');
  t.ok(performance.now() - startedAtMs < 5_000, 'until the migration gives up');
  t.match(await failed, { code: 1, output: /Migration 0002-nicknames waited 1\.2 s .*Run `latchkey migrate` again/ });
  t.notOk(await hasColumn(old.urls.owner, 'api_keys'), 'the whole migration was rolled back');
  await session.query('rollback');
  session.release();
  t.match(await second.latchkey(t, ['migrate'], asOwner(old)), { code: 0, output: 'applied: 0002-nicknames\n' });
});

t.test(
  'an index whose concurrent creation was killed is repaired by the next run; of two at once, the second waits',
  async (t) => {
    const old = await serve(t);
    const { urls } = old;
    const second = await laterVersion(t, '0.2.0', [expand, index]);
    const { pool, close } = connect({ url: urls.owner, poolSize: 1 });
    t.teardown(close);
    const session = await pool.connect();
    // The creation waits for this transaction, also while others can write.
    await session.query('begin isolation level repeatable read; select 1');
    const building = () =>
      eventually(async () => {
        const found = await dbQuery(
          urls.superuser,
          `select pid from pg_stat_activity where datname = current_database() and query like 'create index concurrently%'
         and wait_event_type = 'Lock'`,
        );
        return found[0];
      });
    const isValid = async () =>
      (
        await dbQuery(urls.owner, "select indisvalid from pg_index where indexrelid = 'api_keys_by_nickname'::regclass")
      )[0]?.['indisvalid'];

    const killed = second.latchkey(t, ['migrate'], asOwner(old));
    await dbQuery(urls.superuser, 'select pg_terminate_backend($1)', [(await building())['pid']]);
    t.equal((await killed).code, 1);
    t.equal(await isValid(), false, 'the killed one left an invalid index');

    const first = second.latchkey(t, ['migrate'], asOwner(old));
    // It begins by removing the invalid index, and that waits, too.
    await eventually(async () => {
      const waiting = await dbQuery(
        urls.superuser,
        `select 1 from pg_stat_activity where datname = current_database() and query like '%index concurrently%' and wait_event_type = 'Lock'`,
      );
      return waiting.length > 0;
    });
    const other = second.latchkey(t, ['migrate'], asOwner(old));
    const key = await request(`${old.url}/v1/keys`, {
      method: 'POST',
      token: old.tokens['adminToken'] ?? '',
      body: {},
    });
    t.equal(key.status, 201, 'keys are written meanwhile');
    await session.query('rollback');
    session.release();
    t.match(await first, { code: 0, output: 'applied: 0003-nickname-index\n' });
    t.match(await other, { code: 0, output: 'The schema is up to date.\n' });
    t.equal(await isValid(), true);
  },
);
