import { setTimeout as delay } from 'node:timers/promises';
import type { Test } from 'tap';
import { verifyKeys } from '../bench/soak/backends.ts';
import { livePartnerLife } from '../bench/soak/key-stories.ts';
import { type SoakTally, type SoakTarget, startSession } from '../bench/soak/session.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { eventually, request, runEntry } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { type Served, serve } from './support/served.ts';
import { fill, snippetsOf } from './support/snippets.ts';
import { t } from './support/tap.ts';
import {
  asOwner,
  expand,
  hasColumn,
  index,
  type LaterMigration,
  laterVersion,
  type Version,
} from './support/versions.ts';

// Replicas of several versions on one database. The later versions are this program with made-up migrations.

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

/** Starts a replica of a version, and waits until it listens. */
async function startReplica(t: Test, version: Version, env: NodeJS.ProcessEnv) {
  const process = version.run(t, 'server.ts', [], env);
  const [, url = ''] = await process.until(/Server listening at (http:\/\/[^"]+)"/);
  await process.until(/The change feed is connected/);
  return { process, url };
}

/** Verifies keys, and lives the lives of partners. */
async function load(target: SoakTarget, seconds: number): Promise<SoakTally> {
  const pauseMs = { verifiers: 5, others: 20 };
  const session = startSession(target, { pauseMs });
  const endsAtMs = performance.now() + seconds * 1_000;
  const stories = [verifyKeys(session), verifyKeys(session), livePartnerLife(session)];
  await Promise.all(
    stories.map(async (story) => {
      for (; performance.now() < endsAtMs; await delay(pauseMs.verifiers)) await story();
    }),
  );
  session.close();
  return session.tally;
}

async function stop({ process }: Pick<Served, 'process'>): Promise<number | null> {
  process.child.kill('SIGTERM');
  return (await process.exited).code;
}

t.test('old and new replicas serve side by side, and a contract waits until the old ones have ended', async (t) => {
  const old = await serve(t, generous);
  await old.process.until(/The change feed is connected/);
  const second = await laterVersion(t, '0.2.0', [expand, index]);
  const third = await laterVersion(t, '0.3.0', [expand, index, contract]);
  const env = asOwner(old);
  const tokenOf = (name: string) => old.tokens[name] ?? '';
  const target = (url: string): SoakTarget => ({
    url,
    organizationId: tokenOf('organizationId'),
    adminToken: tokenOf('adminToken'),
    operatorToken: tokenOf('operatorToken'),
    verifierToken: tokenOf('verifierToken'),
  });
  const works = (tally: SoakTally) => {
    t.same(tally.unexpected, []);
    t.ok(tally.allowed > 0 && Object.keys(tally.changes).length > 0, `${tally.allowed} verifications were allowed`);
  };

  const loaded = load(target(old.url), 8);
  // Two versions at once were left out: the third one meets a replica that does not know the second.
  const migrated = await third.latchkey(t, ['migrate'], env);
  t.equal(migrated.code, 1);
  t.match(migrated.output, /^applied: 0002-nicknames, 0003-nickname-index$/m);
  t.match(
    migrated.output,
    /^waiting: 0004-no-partner-nicknames, for 1 replica of an older version:\n +latchkey changes 0\.1\.0 \S+, process \d+ of Postgres$/m,
  );
  t.match(migrated.output, /Replace these replicas by this version, then run `latchkey migrate` again/);
  t.ok(await hasColumn(old.urls.owner, 'partners'), 'what the old replica uses is still there');
  works(await loaded);
  // The owner may not see other roles' addresses.
  const asSuperuser = { ...env, MIGRATION_DATABASE_URL: old.urls.superuser };
  const status = await third.latchkey(t, ['migrate', '--status'], asSuperuser);
  t.equal(status.code, 1);
  t.match(status.output, /^applied {2}0002-nicknames, expand$/m);
  t.match(
    status.output,
    /^pending {2}0004-no-partner-nicknames, contract, for versions that know 0002-nicknames\n +latchkey changes 0\.1\.0 .*, from \S+, since 20\S+Z$/m,
  );
  t.match((await third.latchkey(t, ['migrate', '--dry-run'], env)).output, /^waiting: 0004-no-partner-nicknames/m);
  t.ok(await hasColumn(old.urls.owner, 'partners'), 'a dry run changes nothing');
  t.match((await third.latchkey(t, ['doctor'], old.env)).output, /^note {4}0004-no-partner-nicknames is pending/m);

  const newest = await startReplica(t, third, { ...old.env, ...generous });
  for (const tally of await Promise.all([load(target(newest.url), 3), load(target(old.url), 3)])) works(tally);
  t.equal((await request(`${old.url}/readyz`)).status, 200, 'the old replica is ready');
  const again = runEntry(t, 'server.ts', [], { env: { ...env, MIGRATE_ON_START: 'true' } });
  await again.until(/A newer version has migrated the database\. This version works with it\./);
  await again.until(/The change feed is connected/);
  t.equal(await stop({ process: again }), 0, 'the old version can start again, and migrates nothing');
  t.equal(await stop(old), 0);

  const middle = await startReplica(t, second, { ...old.env, ...generous });
  const stillServed = load(target(middle.url), 8);
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
  const afterwards: LaterMigration = {
    name: '0005-made-up',
    kind: 'expand',
    statements: ['create table made_up (id text primary key)'],
  };
  const third = await laterVersion(t, '0.3.0', [expand, contract, afterwards]);
  const env = { ...asOwner(old), MIGRATE_ON_START: 'true' };
  const first = await startReplica(t, third, env);
  t.match(first.process.output(), /"applied":\["0002-nicknames","0005-made-up"\]/);
  t.match(
    first.process.output(),
    /"migration":"0004-no-partner-nicknames".*waits until replicas of older versions have ended/,
  );
  t.equal((await request(`${first.url}/readyz`)).status, 200);
  await stop(old);
  const next = await startReplica(t, third, env);
  t.match(next.process.output(), /"applied":\["0004-no-partner-nicknames"\]/);
});

/** A replica whose change feed has just lost its connection, and the version that comes after it. */
async function startCutOff(t: Test) {
  const urls = await createDatabase(t);
  const proxy = await proxyTo(t, urls.app);
  const old = await serve(t, { LISTEN_DATABASE_URL: proxy.url }, { urls });
  await old.process.until(/The change feed is connected/);
  const third = await laterVersion(t, '0.3.0', [expand, contract]);
  proxy.refuse(true);
  proxy.end();
  return { urls, proxy, old, third };
}

t.test('a replica that was cut off during a contract ends as soon as it reconnects, and says why', async (t) => {
  const { proxy, old, third } = await startCutOff(t);
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

t.test('a replica that hangs delays a contract until its session is ended, and ends if it continues', async (t) => {
  const old = await serve(t);
  await old.process.until(/The change feed is connected/);
  const third = await laterVersion(t, '0.3.0', [expand, contract]);
  old.process.child.kill('SIGSTOP');
  const waiting = await third.latchkey(t, ['migrate'], asOwner(old));
  t.match(waiting, { code: 1, output: /waiting: 0004-no-partner-nicknames, for 1 replica/ });
  const [, pid = ''] = /process (\d+) of Postgres/.exec(waiting.output) ?? [];
  const [end] = await snippetsOf('docs/upgrading.md', 'What can happen', 'sql');
  await dbQuery(old.urls.superuser, fill(end, { 4711: pid }));
  t.match(await third.latchkey(t, ['migrate'], asOwner(old)), {
    code: 0,
    output: 'applied: 0004-no-partner-nicknames\n',
  });
  old.process.child.kill('SIGCONT');
  t.equal((await old.process.exited).code, 1);
  t.match(old.process.output(), /"level":60,.*0004-no-partner-nicknames is unknown here/);
});

t.test('a replica that is just reconnecting counts as running', async (t) => {
  const { urls, proxy, old, third } = await startCutOff(t);
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
