import { dbQuery } from './support/database.ts';
import { eventually, request } from './support/process.ts';
import { serve } from './support/served.ts';
import { dbSessions, holdTransaction, untilBlocked } from './support/sessions.ts';
import { snippetsOf } from './support/snippets.ts';
import { t } from './support/tap.ts';
import { asOwner, expand, hasColumn, index, laterVersion } from './support/versions.ts';

// A migration beside a service and other transactions, on tables that are in use.

t.test('an expanding migration does not queue behind a long transaction, and says what to do', async (t) => {
  const old = await serve(t);
  const next = await laterVersion(t, '0.2.0', [expand]);
  const session = await holdTransaction(t, old.urls.owner, 'select count(*) from partners');
  const failed = next.latchkey(t, ['migrate'], asOwner(old));
  await untilBlocked(old.urls.superuser, 'alter table partners%');
  const startedAtMs = performance.now();
  const partners = await request(`${old.url}/v1/partners`, { token: old.tokens['adminToken'] ?? '' });
  t.equal(partners.status, 200, 'a request waits with the migration');
  t.ok(performance.now() - startedAtMs < 5_000, 'until the migration gives up');
  t.match(await failed, {
    code: 1,
    output: /Migration 0002-nicknames waited 5 times for a table .*run `latchkey migrate` again/,
  });
  t.notOk(await hasColumn(old.urls.owner, 'api_keys'), 'the whole migration was rolled back');
  await session.query('rollback');
  t.match(await next.latchkey(t, ['migrate'], asOwner(old)), { code: 0, output: 'applied: 0002-nicknames\n' });
});

t.test(
  'an index whose concurrent creation was killed is repaired by the next run; of two at once, the second waits',
  async (t) => {
    const old = await serve(t);
    const { urls } = old;
    const next = await laterVersion(t, '0.2.0', [expand, index]);
    // The creation waits for this transaction, also while others can write.
    const repeatableRead = 'set transaction isolation level repeatable read; select 1';
    const session = await holdTransaction(t, urls.owner, repeatableRead);
    const isValid = async () =>
      (
        await dbQuery(urls.owner, "select indisvalid from pg_index where indexrelid = 'api_keys_by_nickname'::regclass")
      )[0]?.['indisvalid'];

    const killed = next.latchkey(t, ['migrate'], asOwner(old));
    const building = await untilBlocked(urls.superuser, 'create index concurrently%');
    await dbQuery(urls.superuser, 'select pg_terminate_backend($1)', [building]);
    t.equal((await killed).code, 1);
    t.equal(await isValid(), false, 'the killed one left an invalid index');

    await session.query('rollback; begin; lock table api_keys in row exclusive mode');
    const first = next.latchkey(t, ['migrate'], asOwner(old));
    // It begins by removing the invalid index, and that waits, too.
    await untilBlocked(urls.superuser, '%index concurrently%');
    const other = next.latchkey(t, ['migrate'], asOwner(old));
    const runs = "query like '%latchkey migration%'";
    await eventually(async () => (await dbSessions(urls.superuser, runs)).length === 2);
    // The first one holds the lock in a transaction that is idle for longer than Latchkey's other transactions may be.
    const idle = `${runs} and state = 'idle in transaction' and now() - state_change > interval '16 s'`;
    await eventually(async () => (await dbSessions(urls.superuser, idle)).length > 0);
    const [, documented = ''] = await snippetsOf('docs/upgrading.md', 'What can happen', 'sql');
    const [findRun = '', findTransactions = ''] = documented.split(';');
    t.equal((await dbQuery(urls.superuser, findRun)).length, 1, 'the page names the session that migrates');
    const [oldest] = await dbQuery(urls.superuser, findTransactions);
    const { rows: own } = await session.query('select pg_backend_pid() as pid');
    t.equal(oldest?.['pid'], own[0].pid, 'and the transaction that the index waits for');
    const key = await request(`${old.url}/v1/keys`, {
      method: 'POST',
      token: old.tokens['adminToken'] ?? '',
      body: {},
    });
    t.equal(key.status, 201, 'keys are written meanwhile');
    await session.query('rollback');
    t.match(await first, { code: 0, output: /waits for open transactions.*\napplied: 0003-nickname-index\n$/ });
    t.same(await other, {
      code: 0,
      output: 'Another run of `latchkey migrate` must end first.\nThe schema is up to date.\n',
    });
    t.equal(await isValid(), true);
  },
);
