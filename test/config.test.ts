import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import t from 'tap';
import { z } from 'zod';
import { ConfigError, environment, readConfig } from '../src/config.ts';
import { generateKeyring } from '../src/crypto/keyring.ts';

const keyring = generateKeyring(new Date());
const ownDatabase = { DATABASE_URL: 'postgres://app:pw@db/latchkey', LATCHKEY_KEYRING: keyring };

function problemsOf(env: NodeJS.ProcessEnv): readonly string[] {
  try {
    readConfig(env);
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
}

t.test('an empty environment is a good one: everything embedded', async (t) => {
  const config = readConfig({});
  t.match(config, { HOST: '127.0.0.1', TOKEN_PREFIX: 'lk', CALLER_LIMIT: 3_000, ADDRESS_LIMIT: 60 });
  t.equal(config.PORT, undefined);
  t.equal(config.DATABASE_URL, undefined);
  t.equal(config.keyring, undefined);
  t.ok(Object.isFrozen(config));
});

t.test('an empty variable is one that is not set', async (t) => {
  t.same(readConfig({ PORT: '', DATABASE_URL: '', TRUST_PROXY: '' }), readConfig({}));
});

t.test('every problem at once, each with its name and an example, none with its value', async (t) => {
  const problems = problemsOf({
    PORT: '65536',
    HOST: '',
    DATABASE_URL: 'mysql://u:hunter2@db/x',
    DATABASE_POOL_SIZE: 'ten',
    TOKEN_PREFIX: 'L',
    LOG_LEVEL: 'loud',
    TRUST_PROXY: '10.0.0.0/99',
    WEBHOOK_ALLOW_HTTP: '1',
    WEBHOOK_ALLOW_CIDRS: '10.0.0.0/8,10.0.0.0/8.0',
    MIGRATE_ON_START: 'yes',
    APP_ROLE: 'x; drop',
    LATCHKEY_KEYRING: 'a:hunter2',
    ARGON2_MEMORY_KIB: '999999',
    CALLER_LIMIT: '0',
  });
  const names = problems.map((problem) => problem.split(/[ :]/)[0]).sort();
  t.same(names, [
    'APP_ROLE',
    'ARGON2_MEMORY_KIB',
    'CALLER_LIMIT',
    'DATABASE_POOL_SIZE',
    'DATABASE_URL',
    'LATCHKEY_KEYRING',
    'LOG_LEVEL',
    'MIGRATE_ON_START',
    'PORT',
    'TOKEN_PREFIX',
    'TRUST_PROXY',
    'WEBHOOK_ALLOW_CIDRS',
    'WEBHOOK_ALLOW_HTTP',
  ]);
  for (const problem of problems) {
    t.match(problem, /for example [A-Z_0-9]+=\S/);
    t.notMatch(problem, 'hunter2');
  }
});

t.test('what fits no other variable', async (t) => {
  const table: Array<[env: NodeJS.ProcessEnv, problem: RegExp]> = [
    [{ DATABASE_URL: ownDatabase.DATABASE_URL }, /^LATCHKEY_KEYRING or LATCHKEY_KEYRING_FILE must be set/],
    [{ ...ownDatabase, LATCHKEY_KEYRING_FILE: '/x' }, /both set/],
    [
      { DATABASE_URL: ownDatabase.DATABASE_URL, LATCHKEY_KEYRING_FILE: '/nowhere' },
      /^LATCHKEY_KEYRING_FILE: can not be read/,
    ],
    [{ MIGRATION_DATABASE_URL: ownDatabase.DATABASE_URL }, /without DATABASE_URL/],
    [
      { RETENTION_SECONDS: '3600' },
      /^UNDO_WINDOW_SECONDS \(86400\) must not be longer than RETENTION_SECONDS \(3600\)/,
    ],
  ];
  for (const [env, problem] of table) {
    const problems = problemsOf(env);
    t.equal(problems.length, 1);
    t.match(problems[0], problem);
  }
});

t.test('the keyring comes from the variable or from a file', async (t) => {
  const file = path.join(mkdtempSync(path.join(tmpdir(), 'latchkey-config-')), 'keyring');
  writeFileSync(file, `${keyring}\n`);
  const { DATABASE_URL } = ownDatabase;
  t.equal(readConfig({ DATABASE_URL, LATCHKEY_KEYRING_FILE: file }).keyring?.primary.id, keyring.split(':')[0]);
  t.equal(readConfig(ownDatabase).keyring?.primary.id, keyring.split(':')[0]);
});

t.test("the README's table of variables is the schema's", async (t) => {
  const rows = Object.entries(environment.shape).map(([name, schema]) => {
    const { description, example } = z.globalRegistry.get(schema) ?? {};
    t.ok(description, `${name} has a description`);
    t.ok(example, `${name} has an example`);
    const fallback = schema.safeParse(undefined).data;
    return `| \`${name}\` | ${fallback === undefined ? '' : `\`${String(fallback)}\``} | ${String(description)} |`;
  });
  const readme = readFileSync('README.md', 'utf8').split('\n');
  t.same(
    readme.filter((line) => /^\| `[A-Z0-9_]+` \|/.test(line)),
    rows,
  );
});

t.test('every example of the schema is accepted', async (t) => {
  for (const [name, schema] of Object.entries(environment.shape)) {
    const example = z.globalRegistry.get(schema)?.['example'];
    t.ok(schema.safeParse(example).success, `${name}=${String(example)}`);
  }
});
