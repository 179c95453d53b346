import pg from 'pg';
import type { Test } from 'tap';
import { type Json, startService } from './support/app.ts';
import { createDatabase, dbQuery, roleOf } from './support/database.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { eventually, runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

// The database sends change notifications, and could also send a flood of them.

/** Sends notifications one by one, each in its own transaction, until stopped, for at most 20 s. */
async function flood(t: Test, url: string, payload: string) {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  const ended = client
    .query(
      `do $$ declare n int := 0; begin
         while n < 200000 and clock_timestamp() < '${new Date(Date.now() + 20_000).toISOString()}' loop
           perform pg_notify('latchkey_changes', ${payload}); commit; n := n + 1;
         end loop;
       end $$`,
    )
    .catch(() => undefined);
  let isStopped = false;
  const stop = async () => {
    if (isStopped) return;
    isStopped = true;
    const { processID } = client as unknown as { processID: number };
    await dbQuery(url, 'select pg_cancel_backend($1)', [processID]);
    await ended;
    await client.end();
  };
  t.teardown(stop);
  return stop;
}

const randomId = "'key_' || substr(md5(n::text), 1, 26)";

for (const [what, payload] of [
  ["'*', which stands for everything", "'*'"],
  ['unknown ids', `${randomId} || ' org_01k9s3v5wqe8n8x4r2m6t7yb0c'`],
  ['long and malformed text', "case n % 3 when 0 then repeat('x', 7900) when 1 then '' else '* org_' || n end"],
] as const) {
  t.test(`during a flood of ${what} requests are answered, and each verdict is right`, async (t) => {
    const { admin, verifier, verification, urls } = await startService(t);
    await admin.put('/v1/rate-limit', { requests: 1_000_000_000, windowSeconds: 60 });
    const keys: Json[] = [];
    for (let number = 0; number < 20; number++) {
      const { body } = await admin.post('/v1/partners', { email: `p${number}@p.example`, permissions: ['read'] });
      keys.push(body.keys[0]);
    }
    const verify = async ({ key }: Json) => (await verifier.post('/v1/verify', { key, permission: 'read' })).body.code;
    await eventually(async () => verification.feed.isLive());
    let notices = 0;
    const restarted = () => {
      notices += 1;
    };
    verification.feed.subscribe({ changed: () => undefined, restarted });
    const stop = await flood(t, urls.superuser, payload);
    if (payload === "'*'") await eventually(async () => notices > 10);

    // For 2 s, and on a busy machine until 60 verdicts, but at most 10 s.
    const startedAtMs = performance.now();
    let answered = 0;
    let wrongVerdicts = 0;
    const shouldContinue = () => performance.now() - startedAtMs < (answered < 60 ? 10_000 : 2_000);
    const workers = Array.from({ length: 8 }, async (_, worker) => {
      for (let round = worker; shouldContinue(); round++) {
        if ((await verify(keys[round % 10])) === 'valid') answered += 1;
        else wrongVerdicts += 1;
      }
    });
    await Promise.all(workers);
    t.ok(answered >= 60, `${answered} in 10 s`);
    t.equal(wrongVerdicts, 0);

    for (const key of keys.slice(10, 13)) {
      t.equal(await verify(key), 'valid');
      await admin.delete(`/v1/keys/${key.id}`);
      t.equal(await verify(key), 'deleted', 'a change is handled before the flood');
    }
    const unnotified = keys.slice(13);
    for (const key of unnotified) t.equal(await verify(key), 'valid');
    await dbQuery(
      urls.superuser,
      `alter table api_keys disable trigger api_keys_notify;
       update api_keys set suspended_at = now();
       alter table api_keys enable always trigger api_keys_notify; notify latchkey_changes, '*'`,
    );
    // One key alone may be read again for another reason, such as a feed that was silent for a moment.
    await eventually(async () => {
      const codes = await Promise.all(unnotified.map(verify));
      return codes.every((code) => code === 'suspended');
    });
    await stop();
    await eventually(async () => verification.feed.isLive());
  });
}

t.test('clients of the change stream get a reset at most once a second', async (t) => {
  const { app, verifier, urls, verification } = await startService(t);
  await eventually(async () => verification.feed.isLive());
  const url = await app.listen({ host: '127.0.0.1', port: 0 });
  const ending = new AbortController();
  const response = await fetch(`${url}/v1/changes`, {
    headers: { authorization: `Bearer ${verifier.token}` },
    signal: ending.signal,
  });
  let text = '';
  const reading = (async () => {
    for await (const chunk of response.body ?? []) text += Buffer.from(chunk).toString();
  })().catch(() => undefined);
  await eventually(async () => text.includes('event: heartbeat'));
  const stop = await flood(t, urls.superuser, "'*'");
  const startedAtMs = performance.now();
  await eventually(async () => text.includes('event: reset'), 1_000);
  await eventually(async () => text.split('event: reset').length > 3, 5_000);
  const seconds = (performance.now() - startedAtMs) / 1_000;
  await stop();
  t.ok(
    text.split('event: reset').length - 1 <= 2 * seconds + 2,
    `${text.split('event: reset').length - 1} in ${seconds} s`,
  );
  ending.abort();
  await reading;
});

t.test('a role without any grant cannot connect, and doctor names one that can', async (t) => {
  const { urls } = await startService(t, { keyring: keyringOf('test') });
  const database = new URL(urls.superuser).pathname.slice(1);
  const otherRole = `stranger_${database.slice(-8)}`;
  await dbQuery(urls.superuser, `create role ${otherRole} login password 'x'`);
  t.teardown(() => dbQuery(urls.superuser.replace(database, 'postgres'), `drop role ${otherRole}`));
  const url = new URL(urls.superuser);
  url.username = otherRole;
  url.password = 'x';
  await t.rejects(dbQuery(url.href, 'select 1'), { code: '42501' });
  const env = {
    DATABASE_URL: urls.app,
    MIGRATION_DATABASE_URL: urls.owner,
    APP_ROLE: roleOf(urls.app),
    LATCHKEY_KEYRING: keyringText('test'),
  };
  const run = async (command: string) => {
    const process = runEntry(t, 'cli/latchkey.ts', [command], { env });
    return { code: (await process.exited).code, output: process.output() };
  };
  t.match(await run('doctor'), { output: /^ok {6}Only roles with an explicit grant may connect to the database\.$/m });
  await dbQuery(urls.superuser, `grant connect on database ${database} to public`);
  t.match(await run('doctor'), {
    code: 1,
    output: /^wrong {3}Not so: Only roles .* revoke connect on database/m,
  });
  t.match(await run('migrate'), { code: 0 });
  await t.rejects(dbQuery(url.href, 'select 1'), { code: '42501' }, 'each migrate revokes the access again');
});

t.test('with one role for everything, migrate also closes the database', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  const process = runEntry(t, 'cli/latchkey.ts', ['migrate'], { env: { DATABASE_URL: urls.owner } });
  t.equal((await process.exited).code, 0, process.output());
  const rows = await dbQuery(
    urls.superuser,
    "select has_database_privilege('public', current_database(), 'connect') as may",
  );
  t.same(rows, [{ may: false }]);
});
