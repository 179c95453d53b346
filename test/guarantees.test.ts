import path from 'node:path';
import type { Test } from 'tap';
import { generateKeyring } from '../src/crypto/keyring.ts';
import { connect } from '../src/database/client.ts';
import { checkGuarantees, type GuaranteeFacts, judgeGuarantees } from '../src/database/guarantees.ts';
import { startEmbeddedPostgres } from '../src/embedded-postgres/start.ts';
import { dbQuery, migrateAs } from './support/database.ts';
import { scratch } from './support/instance.ts';
import { runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

// A separate Postgres, because these tests change server settings, and the shared one trades safety for speed.

const directory = await scratch(t);
const postgres = await startEmbeddedPostgres({
  dataDirectory: directory,
  copiesDirectory: path.join(directory, 'programs'),
  port: 0,
});
t.teardown(() => postgres.stop());
const { urls } = postgres;
await migrateAs(urls);
const app = 'latchkey_app';
const owner = 'latchkey_owner';

async function broken(url = urls.app): Promise<string[]> {
  const { db, close } = connect({ url, poolSize: 1 });
  try {
    return (await checkGuarantees(db)).filter(({ kept }) => !kept).map(({ name, remedy }) => `${name}. ${remedy}`);
  } finally {
    await close();
  }
}

const asSuperuser = async (...statements: string[]) => {
  for (const statement of statements) await dbQuery(urls.superuser, statement);
};

interface Breakage {
  what: string;
  break: string[];
  repair: string[];
  /** The guarantees that must be reported as broken, and no others. */
  reported: RegExp[];
}

const noSuperuser = /^The service connects with a role that is not a superuser/;
const noBypass = /^The service's role does not bypass row security/;
const noOwner =
  /^The service's role neither owns history nor may write.* owns history, its functions, its schema or its database/;
const noWriter = /^The service's role neither owns history nor may write.* may write to history directly/;
const noTrigger = /^The triggers that keep history append-only/;

const alwaysFire = 'alter table history enable always trigger history_append_only';
const triggerFor = (events: string, condition = '') => [
  'drop trigger if exists history_append_only on history',
  `create trigger history_append_only before ${events} on history for each statement ${condition} execute function history_refuse_change()`,
  alwaysFire,
];
const makeTrigger = triggerFor('update or truncate');
const functionOf = (body: string, name = 'history_refuse_change') =>
  `create or replace function ${name}() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$${body}$$`;
const refusal = `
begin
  raise exception 'history is append-only: % is refused', tg_op using errcode = 'insufficient_privilege';
end `;
const refusalOfRemoval = `
begin
  if exists (select from public.history_archives where chain = old.chain and last_sequence >= old.sequence) then
    return old;
  end if;
  raise exception 'history is append-only: % is refused', tg_op using errcode = 'insufficient_privilege';
end `;

const granted = (role: string, reported: RegExp[]): Breakage => ({
  what: `member of ${role}`,
  break: [`grant ${role} to ${app}`],
  repair: [`revoke ${role} from ${app}`],
  reported,
});
const withPrivilege = (privilege: string): Breakage => ({
  what: privilege,
  break: [`grant ${privilege} to ${app}`],
  repair: [`revoke ${privilege} from ${app}`],
  reported: [noWriter],
});

const breakages: Breakage[] = [
  {
    what: 'a superuser',
    break: [`alter role ${app} superuser`],
    repair: [`alter role ${app} nosuperuser`],
    // A superuser is a member of every role, also of the BYPASSRLS role of Postgres.
    reported: [noSuperuser, noBypass, noOwner],
  },
  granted('postgres', [noSuperuser, noBypass, noWriter]),
  granted('pg_write_server_files', [noSuperuser]),
  granted('pg_execute_server_program', [noSuperuser]),
  {
    what: 'BYPASSRLS',
    break: [`alter role ${app} bypassrls`],
    repair: [`alter role ${app} nobypassrls`],
    reported: [/^The service's role does not bypass row security. Role latchkey_app has BYPASSRLS/],
  },
  {
    what: 'BYPASSRLS of a role that it may set',
    break: ['create role passing bypassrls', `grant passing to ${app}`],
    repair: ['drop role passing'],
    reported: [/^The service's role does not bypass row security. Role latchkey_app \(as passing\) has BYPASSRLS/],
  },
  granted(owner, [
    /Role latchkey_app \(as latchkey_owner, pg_database_owner\) owns history, its functions, its schema or its database/,
  ]),
  {
    what: 'member of the owner without inheriting its rights',
    break: [`grant ${owner} to ${app} with inherit false`],
    repair: [`revoke ${owner} from ${app}`],
    reported: [noOwner],
  },
  {
    what: 'owner of the table',
    break: [`alter table history owner to ${app}`],
    repair: [
      `alter table history owner to ${owner}`,
      `revoke all on history from ${app}`,
      `grant select on history to ${app}`,
    ],
    reported: [noOwner],
  },
  {
    what: 'owner of the function that writes history',
    break: [`alter function history_append(text, text) owner to ${app}`],
    repair: [
      `alter function history_append(text, text) owner to ${owner}`,
      `grant execute on function history_append(text, text) to ${app}`,
    ],
    reported: [noOwner],
  },
  {
    what: 'owner of the schema',
    break: [`alter schema public owner to ${app}`],
    repair: ['alter schema public owner to pg_database_owner'],
    reported: [noOwner],
  },
  {
    what: 'owner of the database',
    break: [`alter database latchkey owner to ${app}`],
    repair: [`alter database latchkey owner to ${owner}`, `grant connect on database latchkey to ${app}`],
    reported: [noOwner],
  },
  withPrivilege('insert on history'),
  withPrivilege('update (canonical) on history'),
  withPrivilege('truncate on history'),
  withPrivilege('trigger on history'),
  withPrivilege('update on history_heads'),
  granted('pg_write_all_data', [noWriter]),
  {
    what: 'trigger disabled',
    break: ['alter table history disable trigger history_append_only'],
    repair: [alwaysFire],
    reported: [noTrigger],
  },
  {
    what: 'trigger that replicas do not fire',
    break: ['alter table history enable trigger history_append_only'],
    repair: [alwaysFire],
    reported: [noTrigger],
  },
  {
    what: 'trigger dropped',
    break: ['drop trigger history_append_only on history'],
    repair: makeTrigger,
    reported: [noTrigger],
  },
  {
    what: 'trigger under another name',
    break: ['alter trigger history_append_only on history rename to other'],
    repair: ['alter trigger other on history rename to history_append_only'],
    reported: [noTrigger],
  },
  {
    what: 'trigger that lets update through',
    break: triggerFor('truncate'),
    repair: makeTrigger,
    reported: [noTrigger],
  },
  {
    what: 'trigger for one column only',
    break: triggerFor('update of id or truncate'),
    repair: makeTrigger,
    reported: [noTrigger],
  },
  {
    what: 'trigger under a condition',
    break: triggerFor('update or truncate', 'when (false)'),
    repair: makeTrigger,
    reported: [noTrigger],
  },
  {
    what: 'trigger whose function does nothing',
    break: [functionOf('begin return null; end')],
    repair: [functionOf(refusal)],
    reported: [noTrigger],
  },
  {
    what: 'trigger against removals dropped',
    break: ['drop trigger history_keep on history'],
    repair: [
      'create trigger history_keep before delete on history for each row execute function history_refuse_removal()',
      'alter table history enable always trigger history_keep',
    ],
    reported: [noTrigger],
  },
  {
    what: 'trigger against removals that lets some through',
    break: [
      functionOf("begin return case when old.action = 'key.revealed' then old end; end", 'history_refuse_removal'),
    ],
    repair: [functionOf(refusalOfRemoval, 'history_refuse_removal')],
    reported: [noTrigger],
  },
  {
    what: 'fsync',
    break: ['alter system set fsync = off', 'select pg_reload_conf()'],
    repair: ['alter system reset fsync', 'select pg_reload_conf()'],
    reported: [/^fsync is on\. It is off/],
  },
  {
    what: 'full_page_writes',
    break: ['alter system set full_page_writes = off', 'select pg_reload_conf()'],
    repair: ['alter system reset full_page_writes', 'select pg_reload_conf()'],
    reported: [/^full_page_writes is on\. It is off/],
  },
  {
    what: 'synchronous_commit for this role alone',
    break: [`alter role ${app} in database latchkey set synchronous_commit = off`],
    repair: [`alter role ${app} in database latchkey reset synchronous_commit`],
    reported: [/^synchronous_commit is on\. It is off/],
  },
];

/** Processes of the server read a changed setting one by one. */
async function untilReported(expected: number): Promise<string[]> {
  for (const deadline = Date.now() + 10_000; ; ) {
    const reported = await broken();
    if (reported.length === expected || Date.now() > deadline) return reported;
  }
}

t.test('each broken guarantee is reported, and no other', async (t) => {
  t.same(await broken(), []);
  for (const breakage of breakages) {
    await t.test(breakage.what, async (t) => {
      await asSuperuser(...breakage.break);
      const reported = await untilReported(breakage.reported.length);
      await asSuperuser(...breakage.repair);
      t.equal(reported.length, breakage.reported.length, reported.join('\n'));
      for (const [index, pattern] of breakage.reported.entries()) t.match(reported[index], pattern);
      t.same(await untilReported(0), []);
    });
  }
});

t.test('a membership without inheritance still allows changes of history', async (t) => {
  await asSuperuser(`grant ${owner} to ${app} with inherit false`);
  const { pool, close } = connect({ url: urls.app, poolSize: 1 });
  t.teardown(close);
  await t.rejects(pool.query('drop trigger history_append_only on history'), { code: '42501' });
  await pool.query(`set role ${owner}; drop trigger history_append_only on history`);
  await asSuperuser(
    `revoke ${owner} from ${app}`,
    ...makeTrigger.map((statement) => `set role ${owner}; ${statement}`),
  );
  t.same(await untilReported(0), []);
});

t.test('a role that is set at login does not hide the login role', async (t) => {
  await asSuperuser(`grant ${app} to postgres`, `alter role postgres in database latchkey set role = ${app}`);
  const reported = await broken(urls.superuser);
  await asSuperuser(`set role none; alter role postgres in database latchkey reset role; revoke ${app} from postgres`);
  t.match(reported[0], noSuperuser);
});

t.test('before Postgres 16, CREATEROLE counts as the right to every role', async (t) => {
  const allGood: GuaranteeFacts = {
    role: 'app',
    superusers: [],
    bypassingRowSecurity: [],
    owners: [],
    writers: [],
    mayCreateRoles: true,
    areTriggersSound: true,
    replicationRole: 'origin',
    mayPublicConnect: false,
    fsync: 'on',
    fullPageWrites: 'on',
    synchronousCommit: 'remote_apply',
    version: 160_004,
  };
  const missed = (facts: Partial<GuaranteeFacts>) =>
    judgeGuarantees({ ...allGood, ...facts }).filter(({ kept }) => !kept);
  t.same(missed({}), []);
  t.match(missed({ version: 150_010 }), [{ remedy: /CREATEROLE/ }]);
  t.same(missed({ version: 150_010, mayCreateRoles: false }), []);
  for (const version of [140_012, 190_000])
    t.match(missed({ version, mayCreateRoles: false }), [{ name: /with this version/ }]);
});

const keyring = generateKeyring(new Date());

async function latchkey(t: Test, command: string, env: NodeJS.ProcessEnv = {}) {
  const process = runEntry(t, 'cli/latchkey.ts', [command], {
    env: { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyring, PORT: '0', ...env },
  });
  const { code } = await process.exited;
  return { code, output: process.output() };
}

t.test('doctor and the start report broken guarantees', async (t) => {
  const two = { MIGRATION_DATABASE_URL: urls.owner };
  const strict = { LATCHKEY_STRICT: 'true' };
  const good = await latchkey(t, 'doctor', { ...two, ...strict });
  t.equal(good.code, 0, good.output);
  t.notMatch(good.output, /^(wrong|warning)/m);

  await asSuperuser(`alter role ${app} in database latchkey set synchronous_commit = off`, `grant ${owner} to ${app}`);
  const one = await latchkey(t, 'doctor');
  t.equal(one.code, 0, 'with one URL, missing separation is only a warning');
  t.match(one.output, /^warning Not so: synchronous_commit is on\./m);
  t.match(one.output, /^warning Not so: The service's role neither owns history/m);
  for (const env of [two, strict]) {
    const { code, output } = await latchkey(t, 'doctor', env);
    t.equal(code, 1);
    t.match(output, /^wrong {3}Not so: synchronous_commit is on\./m);
  }

  const refused = await latchkey(t, 'serve', { ...two, ...strict });
  t.equal(refused.code, 78);
  t.match(refused.output, /LATCHKEY_STRICT is set.*\n.*neither owns history.*\n.*synchronous_commit is on/);
  const warned = runEntry(t, 'server.ts', [], {
    env: { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyring, PORT: '0', ...two },
  });
  await warned.until(/Server listening/);
  t.match(warned.output(), /"level":40.*Not so: synchronous_commit is on/);
  await asSuperuser(`alter role ${app} in database latchkey reset synchronous_commit`, `revoke ${owner} from ${app}`);
});
