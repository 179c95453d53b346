import { readdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import { generateKeyring } from '../src/crypto/keyring.ts';
import type { ClusterUrls } from './support/cluster.ts';
import { createDatabase, roleOf } from './support/database.ts';
import { scratch } from './support/instance.ts';
import { compiled, request, run, runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

const keyring = generateKeyring(new Date());

function environmentOf(urls: ClusterUrls): Record<string, string> {
  return {
    DATABASE_URL: urls.app,
    MIGRATION_DATABASE_URL: urls.owner,
    APP_ROLE: roleOf(urls.app),
    LATCHKEY_KEYRING: keyring,
    PORT: '0',
  };
}

async function latchkey(t: Test, args: string[], env: Record<string, string>) {
  const process = runEntry(t, 'cli/latchkey.ts', args, { env });
  const { code } = await process.exited;
  return { code, output: process.output(), stdout: process.stdout() };
}

t.test('with an external Postgres the commands lead from an empty database to the first verified key', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  const env = environmentOf(urls);
  const call = (...args: string[]) => latchkey(t, args, env);

  const beforeMigration = await call('serve');
  t.equal(beforeMigration.code, 1);
  t.match(beforeMigration.output, /no Latchkey schema yet.*`latchkey migrate`/);

  t.match(await call('migrate', '--status'), {
    code: 1,
    stdout: 'pending  0001-initial, expand\npending  graphile_worker@19, expand\n',
  });
  t.match(await call('migrate', '--dry-run'), {
    code: 0,
    stdout: 'would apply: 0001-initial, graphile_worker@19\n',
  });
  t.match(await call('migrate'), {
    code: 0,
    stdout: 'applied: 0001-initial, graphile_worker@19\n',
  });
  t.match(await call('migrate'), { code: 0, stdout: 'The schema is up to date.\n' });
  t.match(await call('migrate', '--status'), {
    code: 0,
    stdout: 'applied  0001-initial, expand\napplied  graphile_worker@19, expand\n',
  });

  t.match(await call('bootstrap', '--operator'), { code: 1, stdout: '', output: /There is no organization yet/ });
  const bootstrapped = await call('bootstrap', '--organization', 'Example Inc', '--admin-email', 'ada@example.com');
  t.equal(bootstrapped.code, 0);
  const tokens = JSON.parse(bootstrapped.stdout) as Record<string, string>;
  t.same(Object.keys(tokens), ['organizationId', 'adminToken', 'verifierToken', 'operatorToken']);
  const again = await call('bootstrap', '--organization', 'Example Inc', '--admin-email', 'ada@example.com');
  t.equal(again.code, 1);
  t.match(
    again.output,
    /An organization named Example Inc already exists. Nothing was created.*`latchkey bootstrap --operator`/s,
  );
  t.equal(again.stdout, '');
  const sameName = await call('bootstrap', '--organization', 'example  INC', '--admin-email', 'ada@example.com');
  t.match(sameName, { code: 1, stdout: '', output: /An organization named example {2}INC already exists/ });
  const race = ['bootstrap', '--organization', 'Race', '--admin-email', 'ada@example.com'];
  const racers = await Promise.all([call(...race), call(...race)]);
  t.same(racers.map(({ code }) => code).sort(), [0, 1], 'of two concurrent calls one is rejected');
  t.match(await call('bootstrap', '--organization', 'Other', '--admin-email', 'nobody'), {
    code: 1,
    output: /--admin-email/,
  });
  for (const name of [`Ours ${tokens['verifierToken']}`, encodeURIComponent(`(${tokens['adminToken']})`)]) {
    const refused = await call('bootstrap', '--organization', name, '--admin-email', 'bob@example.com');
    t.match(refused, { code: 1, output: /--organization must not contain a Latchkey token/ });
  }
  t.match(await call('bootstrap', '--organization', 'Oth\u200ber', '--admin-email', 'bob@example.com'), {
    code: 1,
    output: /--organization must not contain U\+200B/,
  });

  const service = runEntry(t, 'server.ts', [], { env });
  const [, url] = await service.until(/Server listening at (http:\/\/[^"]+)"/);
  const token = tokens['adminToken'] ?? '';
  const { body: key } = await request(`${url}/v1/keys`, { method: 'POST', token, body: {} });
  const { body: verdict } = await request(`${url}/v1/verify`, {
    method: 'POST',
    token: tokens['verifierToken'] ?? '',
    body: { key: key.key, permission: 'write' },
  });
  t.equal(verdict.code, 'valid');
  const { body: history } = await request(`${url}/v1/history`, { token });
  t.match(history.data.at(-1), { action: 'organization.created', actor: { type: 'system', id: 'bootstrap' } });

  await t.test('bootstrap creates and records one more operator, whether or not the others are lost', async (t) => {
    const bootstrapped = await call('bootstrap', '--operator');
    t.equal(bootstrapped.code, 0);
    const { operatorToken, ...others } = JSON.parse(bootstrapped.stdout) as Record<string, string>;
    t.same(others, {});
    t.match(bootstrapped.output, /one more operator.*tokens of other operators still work/);
    const { body: self } = await request(`${url}/v1/self`, { token: operatorToken ?? '' });
    t.match(self, { role: 'operator', scopes: ['read', 'write', 'reveal'] });
    const earlier = await request(`${url}/v1/organizations`, { token: tokens['operatorToken'] ?? '' });
    t.equal(earlier.status, 200, 'an operator that is not lost goes on working');
    const operator = { token: operatorToken ?? '' };
    t.equal((await request(`${url}/v1/organizations`, operator)).body.data.length, 2);
    t.match((await request(`${url}/v1/history?limit=1`, operator)).body.data, [
      {
        action: 'access_token.created',
        actor: { type: 'system', id: 'bootstrap' },
        details: { role: 'operator', name: 'Operator by latchkey bootstrap' },
      },
    ]);
    t.match(await call('bootstrap', '--operator', '--organization', 'X'), { code: 2, output: /cannot be used with/ });
  });

  await t.test('doctor reports the good state, apart from durability', async (t) => {
    const { output } = await call('doctor');
    t.match(output, /^ok {6}The database can be reached, and its schema is current\.$/m);
    t.match(output, /^ok {6}The service's role neither owns history nor may write to it directly\.$/m);
    t.match(output, /^ok {6}The triggers that keep history append-only exist, are unchanged and always fire\.$/m);
    t.match(output, /^ok {6}The keyring has the entry of every sealed value\.$/m);
    t.match(output, /^ok {6}Job fold_usage has not run yet: it is not due\.$/m);
  });

  await t.test('one role with all rights gives a warning, and prevents a strict start', async (t) => {
    const single = { ...env, DATABASE_URL: urls.owner };
    const { code, output } = await latchkey(t, ['doctor'], single);
    t.equal(code, 0);
    t.match(output, /^warning .*neither owns history/m);
    const warned = runEntry(t, 'server.ts', [], { env: single });
    await warned.until(/Server listening/);
    t.match(warned.output(), /neither owns history/);
    const strict = await latchkey(t, ['serve'], { ...single, LATCHKEY_STRICT: 'true' });
    t.equal(strict.code, 78);
    t.match(strict.output, /LATCHKEY_STRICT/);
  });

  await t.test('another keyring under the same id, or another prefix, prevents the start', async (t) => {
    const id = keyring.split(':')[0];
    const other = `${id}:${Buffer.alloc(32, 7).toString('base64')}`;
    const otherKeyring = await latchkey(t, ['serve'], { ...env, LATCHKEY_KEYRING: other });
    t.equal(otherKeyring.code, 78);
    t.match(otherKeyring.output, /differs from the entry with this id/);
    t.notMatch(otherKeyring.output, other);
    const prefixed = await latchkey(t, ['serve'], { ...env, TOKEN_PREFIX: 'acme' });
    t.equal(prefixed.code, 78);
    t.match(prefixed.output, /TOKEN_PREFIX=lk/);
    const fresh = `new:${Buffer.alloc(32, 8).toString('base64')}`;
    const without = { ...env, LATCHKEY_KEYRING: fresh };
    for (const command of ['serve', 'doctor']) {
      const { code, output } = await latchkey(t, [command], without);
      t.equal(code, command === 'serve' ? 78 : 1);
      t.match(output, new RegExp(`keyring has none of the entries that were used with this database: ${id}\\.`));
      t.match(output, /LOST_KEYRING_IDS/);
    }
    t.match(await latchkey(t, ['doctor'], { ...without, LOST_KEYRING_IDS: id ?? '' }), {
      code: 1,
      output: new RegExp(`wrong .*keyring lacks ${id}, under which values are sealed`),
    });
  });

  await t.test('SIGTERM ends the service cleanly', async (t) => {
    service.child.kill('SIGTERM');
    t.same(await service.exited, { code: 0, signal: null });
    t.notMatch(service.output(), key.key);
  });
});

t.test('wrong configuration and wrong usage have exit codes of their own', async (t) => {
  const invalid = await latchkey(t, ['serve'], { PORT: 'x', DATABASE_URL: 'x' });
  t.equal(invalid.code, 78);
  t.match(invalid.output, /PORT must be/);
  t.match(invalid.output, /DATABASE_URL must be/);
  t.match(invalid.output, /LATCHKEY_KEYRING or LATCHKEY_KEYRING_FILE must be set/);
  t.match(await latchkey(t, ['migrate'], {}), { code: 78, output: /MIGRATION_DATABASE_URL must be set/ });
  t.match(await latchkey(t, ['bootstrap'], {}), { code: 2, output: /--organization/ });
  t.match(await latchkey(t, ['eat'], {}), { code: 2 });
  t.match(await latchkey(t, ['--help'], {}), { code: 0, output: /Exit codes/ });
  t.match(await latchkey(t, ['doctor'], { LATCHKEY_DATA_DIR: '/nowhere' }), {
    code: 1,
    output: /Start the service first/,
  });
});

t.test('serve never starts a database, regardless of the settings; try does', async (t) => {
  const directory = await scratch(t);
  for (const env of [
    {},
    { LATCHKEY_KEYRING: keyring, DATABSE_URL: 'postgres://app:hunter2@db/latchkey' },
    { LATCHKEY_STRICT: 'true', NODE_ENV: 'production', MIGRATE_ON_START: 'true' },
    { MIGRATION_DATABASE_URL: 'postgres://owner@db/latchkey' },
  ]) {
    const { code, output } = await latchkey(t, ['serve'], { LATCHKEY_DATA_DIR: path.join(directory, 'none'), ...env });
    t.equal(code, 78);
    t.match(output, /^ {2}DATABASE_URL or DATABASE_URL_FILE must be set, for example .*`latchkey try`/m);
    if ('DATABSE_URL' in env) t.match(output, /^ {2}DATABSE_URL has no effect. Did you mean DATABASE_URL\?$/m);
    t.notMatch(output, /hunter2|lk_[avok]_/);
  }
  t.same(await readdir(directory), [], 'nothing was created');
  const env = { LATCHKEY_DATA_DIR: directory, PORT: '0', LATCHKEY_COLOUR: 'red' };
  const trial = runEntry(t, 'cli/latchkey.ts', ['try'], { env });
  const [, url] = await trial.until(/Latchkey listens on (http:\/\/[^\s,]+[0-9])/);
  t.equal((await request(`${url}/readyz`)).status, 200);
  t.match(trial.output(), /LATCHKEY_COLOUR has no effect/);
  t.match(await latchkey(t, ['doctor'], env), { code: 0, stdout: /^warning LATCHKEY_COLOUR has no effect/m });
  trial.child.kill('SIGTERM');
  t.same(await trial.exited, { code: 0, signal: null });
});

t.test('a closed standard output does not end a command', async (t) => {
  const env = environmentOf(await createDatabase(t));
  const command = `"$0" "$@" | head -n 1; echo "code \${PIPESTATUS[0]}"`;
  const program = [process.execPath, compiled('src/cli/latchkey.ts')];
  for (const [args, first] of [
    [['doctor'], /^ok {6}The configuration can be read\.\n/],
    [['openapi'], /^\{\n/],
  ] as const) {
    const piped = run(t, 'bash', ['-c', command, ...program, ...args], { env });
    await piped.exited;
    t.match(piped.output(), first);
    t.match(piped.output(), `code ${(await latchkey(t, [...args], env)).code}\n`, 'the exit code does not change');
    t.notMatch(piped.output(), 'EPIPE');
  }
});

t.test('a service that cannot reach its database reports this and ends', async (t) => {
  const env = { DATABASE_URL: 'postgres://nobody@127.0.0.1:1/nothing', LATCHKEY_KEYRING: keyring };
  const { code, output } = await latchkey(t, ['serve'], env);
  t.equal(code, 1);
  t.match(output, /ECONNREFUSED.*Is Postgres running, and does DATABASE_URL point to it\?/);
});

t.test('a command for a stopped embedded instance prints a remedy', async (t) => {
  const directory = await scratch(t);
  const keyringFile = path.join(directory, 'keyring');
  await writeFile(keyringFile, keyring);
  const databaseUrl = 'postgres://latchkey_app:pw@localhost:1/latchkey';
  await writeFile(path.join(directory, 'credentials.json'), JSON.stringify({ databaseUrl, keyringFile }));
  for (const command of ['rekey', 'doctor']) {
    const { code, output } = await latchkey(t, [command], { LATCHKEY_DATA_DIR: directory });
    t.equal(code, 1);
    t.match(
      output,
      /^(latchkey:|wrong) +The database cannot be reached: .*ECONNREFUSED.*start Latchkey \(`npm start`\)/m,
    );
  }
});

t.test('MIGRATE_ON_START migrates, and two replicas that start at once both become ready', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  const env = { ...environmentOf(urls), MIGRATE_ON_START: 'true' };
  const replicas = [runEntry(t, 'server.ts', [], { env }), runEntry(t, 'server.ts', [], { env })];
  for (const replica of replicas) {
    const [, url] = await replica.until(/Server listening at (http:\/\/[^"]+)"/);
    t.equal((await request(`${url}/readyz`)).status, 200);
  }
});
