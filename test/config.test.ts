import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { z } from 'zod';
import { describeFailure } from '../src/cli/failure.ts';
import { ConfigError, environment, readConfig } from '../src/config/config.ts';
import { doubtfulVariables } from '../src/config/doubtful-variables.ts';
import { type SecretName, secretNames } from '../src/config/secret-files.ts';
import { generateKeyring } from '../src/crypto/keyring.ts';
import { configurationPage } from '../tools/configuration.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

const keyring = generateKeyring(new Date());
const ownDatabase = { DATABASE_URL: 'postgres://app:pw@db/latchkey', LATCHKEY_KEYRING: keyring };

const organization = 'org_01k9s3v5wqe8n8x4r2m6t7yb0c';
const oidc = {
  OIDC_ISSUER: 'https://login.example.com/realms/company',
  OIDC_AUDIENCE: 'https://latchkey.example.com',
  OIDC_ORGANIZATION: organization,
};

function problemsOf(env: NodeJS.ProcessEnv): readonly string[] {
  try {
    readConfig(env);
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
}

t.test('an empty environment is valid: everything is embedded', async (t) => {
  const config = readConfig({});
  t.match(config, { HOST: '127.0.0.1', TOKEN_PREFIX: 'lk', CALLER_LIMIT: 3_000, ADDRESS_LIMIT: 60 });
  t.equal(config.PORT, undefined);
  t.equal(config.DATABASE_URL, undefined);
  t.equal(config.keyring, undefined);
  t.ok(Object.isFrozen(config));
});

t.test('networks are normalized, and an IPv4-mapped network never means all of IPv4', async (t) => {
  const networks = '10.0.0.0/8, ::ffff:192.0.2.0/120,fd00::/8,::ffff:127.0.0.1';
  t.same(readConfig({ TRUST_PROXY: networks }).TRUST_PROXY, ['10.0.0.0/8', '192.0.2.0/24', 'fd00::/8', '127.0.0.1']);
  for (const network of ['::ffff:10.0.0.1/96', '::ffff:10.0.0.1/8', '10.0.0.1/0', '']) {
    for (const name of ['TRUST_PROXY', 'WEBHOOK_ALLOW_CIDRS']) {
      t.match(problemsOf({ [name]: `127.0.0.1,${network}` }), [/entry 2 (would mean|must be)/], `${name} ${network}`);
    }
  }
});

t.test('PUBLIC_URL may have a path prefix, and nothing that would break a link that begins with it', async (t) => {
  const table = {
    'https://keys.example.com': 'https://keys.example.com',
    'https://keys.example.com/': 'https://keys.example.com',
    'http://localhost:8080/latchkey//': 'http://localhost:8080/latchkey',
  };
  for (const [given, read] of Object.entries(table)) t.equal(readConfig({ PUBLIC_URL: given }).PUBLIC_URL, read);
  for (const url of [
    'keys.example.com',
    'ftp://keys',
    'https://a:b@keys',
    'https://keys/?x',
    'https://keys/#',
    ' https://keys',
  ]) {
    t.match(problemsOf({ PUBLIC_URL: url }), [/^PUBLIC_URL must be a URL of the form https:\/\/host or/], url);
  }
});

t.test('a variable that was probably meant for Latchkey is named, never with its value', async (t) => {
  const table: Array<[name: string, line: RegExp]> = [
    ['DATABSE_URL', /^DATABSE_URL has no effect. Did you mean DATABASE_URL\?$/],
    ['DATABASE_URL_FIEL', /Did you mean DATABASE_URL_FILE\?/],
    ['LATCHKEY_DATABASE_URL', /Did you mean DATABASE_URL\?/],
    ['LATCHKEY_KEY_RING', /Did you mean LATCHKEY_KEYRING\?/],
    ['LATCHKEY_STRIKT', /Did you mean LATCHKEY_STRICT\?/],
    ['LATCHKEY_PORT', /Did you mean PORT\?/],
    ['LATCHKEY_COLOUR', /^LATCHKEY_COLOUR has no effect: Latchkey has no setting with this name\.$/],
  ];
  for (const [name, line] of table) {
    const lines = doubtfulVariables({
      [name]: 'hunter2',
      PATH: '/bin',
      HOME: '/',
      LANG: 'C',
      HOSTNAME: 'x',
      METRICS_HOST: '1',
    });
    t.equal(lines.length, 1, name);
    t.match(lines[0], line);
    t.notMatch(lines[0], 'hunter2');
  }
  t.same(doubtfulVariables({ LATCHKEY_STRIKT: '' }), []);
});

t.test('variables that Kubernetes sets for a Service named latchkey are not reported', async (t) => {
  const address = 'tcp://10.0.0.7:8080';
  const links = {
    LATCHKEY_SERVICE_HOST: '10.0.0.7',
    LATCHKEY_SERVICE_PORT: '8080',
    LATCHKEY_SERVICE_PORT_HTTP: '8080',
    LATCHKEY_PORT: address,
    LATCHKEY_PORT_8080_TCP: address,
    LATCHKEY_PORT_8080_TCP_ADDR: '10.0.0.7',
    LATCHKEY_PORT_8080_TCP_PORT: '8080',
    LATCHKEY_PORT_8080_TCP_PROTO: 'tcp',
    LATCHKEY_METRICS_SERVICE_HOST: '10.0.0.8',
    LATCHKEY_METRICS_PORT: 'tcp://10.0.0.8:9464',
  };
  t.same(doubtfulVariables(links), []);
});

t.test('an empty variable counts as not set', async (t) => {
  t.same(readConfig({ PORT: '', DATABASE_URL: '', TRUST_PROXY: '' }), readConfig({}));
});

t.test('all problems are reported at once, with name and example, never with the value', async (t) => {
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

t.test('settings that do not fit together are one problem', async (t) => {
  const table: Array<[env: NodeJS.ProcessEnv, problem: RegExp]> = [
    [{ DATABASE_URL: ownDatabase.DATABASE_URL }, /^LATCHKEY_KEYRING or LATCHKEY_KEYRING_FILE must be set/],
    [{ ...ownDatabase, LATCHKEY_KEYRING_FILE: '/x' }, /both set/],
    [
      { DATABASE_URL: ownDatabase.DATABASE_URL, LATCHKEY_KEYRING_FILE: '/nowhere' },
      /^LATCHKEY_KEYRING_FILE: cannot be read/,
    ],
    [{ MIGRATION_DATABASE_URL: ownDatabase.DATABASE_URL }, /without DATABASE_URL/],
    [
      { RETENTION_SECONDS: '3600' },
      /^UNDO_WINDOW_SECONDS \(86400\) must not be longer than RETENTION_SECONDS \(3600\)/,
    ],
    [{ PORT: '9464', METRICS_PORT: '9464' }, /^METRICS_PORT must not be the same as PORT/],
  ];
  table.push(
    [{ OIDC_AUDIENCE: 'x' }, /^OIDC_AUDIENCE is set without OIDC_ISSUER/],
    [{ ...oidc, OIDC_AUDIENCE: '' }, /^OIDC_AUDIENCE must be set with OIDC_ISSUER/],
    [{ ...oidc, OIDC_ORGANIZATION: '' }, /^Either OIDC_ORGANIZATION or OIDC_ORGANIZATION_CLAIM must be set/],
    [{ ...oidc, OIDC_ORGANIZATION_CLAIM: 'org' }, /^Either OIDC_ORGANIZATION or OIDC_ORGANIZATION_CLAIM must be set/],
    [{ ...oidc, OIDC_ORGANIZATIONS: `acme=${organization}` }, /^OIDC_ORGANIZATIONS needs OIDC_ORGANIZATION_CLAIM/],
  );
  for (const [env, problem] of table) {
    const problems = problemsOf(env);
    t.equal(problems.length, 1);
    t.match(problems[0], problem);
  }
});

t.test('an error of an unreachable database names the variable or file that sets it', async (t) => {
  const error = Object.assign(new Error('connect ECONNREFUSED 127.0.0.1:1'), { code: 'ECONNREFUSED' });
  for (const name of ['DATABASE_URL', 'DATABASE_URL_FILE', 'MIGRATION_DATABASE_URL', 'MIGRATION_DATABASE_URL_FILE']) {
    t.match(describeFailure(error, { [name]: 'x' }), /Is Postgres running/, name);
  }
  for (const env of [{}, { DATABASE_URL: '', DATABASE_URL_FILE: '' }]) {
    t.match(describeFailure(error, env), /DATABASE_URL is not set/);
  }
});

t.test('an error of Postgres says what to do about a missing right or database', async (t) => {
  const { superuser, app } = await createDatabase(t, { migrated: false });
  const failureOf = async (url: string, statement: string) =>
    dbQuery(url, statement).then(String, (error: unknown) => describeFailure(error, { DATABASE_URL: 'x' }));
  t.match(
    await failureOf(app, 'create schema own'),
    /^permission denied .* Set MIGRATION_DATABASE_URL to the URL of the role/,
  );
  const elsewhere = Object.assign(new URL(superuser), { pathname: '/nowhere' }).href;
  t.match(await failureOf(elsewhere, 'select 1'), /"nowhere" does not exist. Is its name in DATABASE_URL correct\?/);
});

const secretTexts: Record<SecretName, string> = {
  DATABASE_URL: 'postgres://app:hunter2@db/latchkey',
  MIGRATION_DATABASE_URL: 'postgres://owner:hunter2@db/latchkey',
  LISTEN_DATABASE_URL: 'postgres://app:hunter2@direct/latchkey',
  REDIS_URL: 'redis://:hunter2@cache:6379',
  CHECKPOINT_URL: 'https://latchkey:hunter2@archive.example.com/latchkey',
  LATCHKEY_KEYRING: keyring,
};

function writeSecret(text: string): string {
  const file = path.join(mkdtempSync(path.join(tmpdir(), 'latchkey-config-')), 'secret');
  writeFileSync(file, text);
  return file;
}

t.test('each secret can be set by variable or by file, with the same result', async (t) => {
  const plain = readConfig(secretTexts);
  for (const end of ['', '\n', '\r\n', '\n\n']) {
    const files = Object.entries(secretTexts).map(([name, text]) => [`${name}_FILE`, writeSecret(text + end)]);
    const config = readConfig(Object.fromEntries(files));
    t.equal(config.keyring?.primary.id, keyring.split(':')[0]);
    t.same({ ...config, keyring: undefined }, { ...plain, keyring: undefined }, JSON.stringify(end));
  }
  t.same(Object.keys(secretTexts).sort(), [...secretNames].sort());
});

t.test('an unreadable secret file is an error, never replaced by a default', async (t) => {
  for (const name of secretNames) {
    const { [name]: text, ...others } = secretTexts;
    t.same(problemsOf({ ...secretTexts, [`${name}_FILE`]: '/x' }), [
      `${name} and ${name}_FILE are both set: set one of them.`,
    ]);
    for (const [file, why] of [
      ['/nowhere', /^[A-Z_]+_FILE: cannot be read \(ENOENT/],
      [tmpdir(), /^[A-Z_]+_FILE: cannot be read \(EISDIR/],
      [writeSecret('\n'), /^[A-Z_]+_FILE: .* is empty\.$/],
      [writeSecret(`!${text}`), /^[A-Z_]+_FILE: /],
      [writeSecret(`${text}\nhunter2`), /^[A-Z_]+_FILE: /],
    ] as const) {
      const problems = problemsOf({ ...others, [`${name}_FILE`]: file });
      t.equal(problems.length, 1, `${name} from ${file}`);
      t.match(problems[0], why);
      t.ok(problems[0]?.startsWith(`${name}_FILE`));
      t.notMatch(problems[0], 'hunter2');
    }
  }
});

t.test('docs/configuration.md equals the output of `npm run docs`', async (t) => {
  for (const [name, schema] of Object.entries(environment.shape)) {
    const { description, example } = z.globalRegistry.get(schema) ?? {};
    t.ok(description, `${name} has a description`);
    t.ok(example, `${name} has an example`);
  }
  t.equal(readFileSync('docs/configuration.md', 'utf8'), configurationPage());
});

t.test('every example of the schema is valid', async (t) => {
  for (const [name, schema] of Object.entries(environment.shape)) {
    const example = z.globalRegistry.get(schema)?.['example'];
    t.ok(schema.safeParse(example).success, `${name}=${String(example)}`);
  }
});

t.test('settings of an identity provider and its claims are read and checked', async (t) => {
  t.equal(readConfig({}).oidc, undefined);
  t.match(readConfig(oidc).oidc, {
    issuer: oidc.OIDC_ISSUER,
    audience: oidc.OIDC_AUDIENCE,
    organization: { id: organization },
    rolesClaim: 'roles',
    rolesOf: { read: ['latchkey-read'], write: ['latchkey-write'], reveal: ['latchkey-reveal'] },
    acceptsUntypedTokens: false,
    requiresNbf: false,
    maxLifetimeSeconds: 7_200,
  });
  const { OIDC_ORGANIZATION, ...others } = oidc;
  const claimed = readConfig({
    ...others,
    OIDC_ORGANIZATION_CLAIM: 'tid',
    OIDC_ORGANIZATIONS: `acme = ${organization}, globex=org_01k9s3v5wqe8n8x4r2m6t7yb0d`,
    OIDC_READ_ROLES: 'Auditors, Latchkey Admins',
  }).oidc;
  t.match(claimed, { organization: { claim: 'tid' }, rolesOf: { read: ['Auditors', 'Latchkey Admins'] } });
  const ids = claimed !== undefined && 'ids' in claimed.organization ? claimed.organization.ids : undefined;
  t.equal(ids?.get('acme'), organization);
  t.equal(ids?.size, 2);
  const asJson = readConfig({
    ...others,
    OIDC_ORGANIZATION_CLAIM: 'dn',
    OIDC_ORGANIZATIONS: JSON.stringify({ 'o=acme,c=de': organization }),
    OIDC_READ_ROLES: '["cn=auditors,ou=groups", "Admins"]',
    OIDC_REVEAL_ROLES: 'Break Glass',
  }).oidc;
  t.match(
    asJson,
    { rolesOf: { read: ['cn=auditors,ou=groups', 'Admins'], reveal: ['Break Glass'] } },
    'names with commas',
  );
  t.match(asJson?.organization, { ids: new Map([['o=acme,c=de', organization]]) });
  for (const issuer of ['http://127.0.0.1:8080', 'http://localhost/realms/x', 'https://login.example.com/']) {
    t.same(problemsOf({ ...oidc, OIDC_ISSUER: issuer }), []);
  }
  for (const [name, value] of [
    ['OIDC_ISSUER', 'http://login.example.com'],
    ['OIDC_ISSUER', 'https://login.example.com/?a=b'],
    ['OIDC_ISSUER', 'https://login.example.com/#a'],
    ['OIDC_ISSUER', 'https://user:pw@login.example.com/'],
    ['OIDC_ISSUER', 'login.example.com'],
    ['OIDC_ORGANIZATION', 'acme'],
    ['OIDC_ROLES_CLAIM', 'two words'],
    ['OIDC_READ_ROLES', 'a,,b'],
    ['OIDC_READ_ROLES', '["a"'],
    ['OIDC_READ_ROLES', '["a", 1]'],
    ['OIDC_READ_ROLES', '[]'],
    ['OIDC_MAX_LIFETIME_SECONDS', '2h'],
    ['OIDC_UNTYPED_TOKENS', 'yes'],
  ] as const) {
    const problems = problemsOf({ ...oidc, [name]: value });
    t.match(problems, [new RegExp(`^${name} must be .*for example ${name}=`)], `${name}=${value}`);
  }
  for (const pairs of [
    'acme',
    'acme=globex',
    `=${organization}`,
    `a=${organization},a=${organization}`,
    `a=b=${organization}`,
    '{}',
    '{"acme"',
    '{"acme":"globex"}',
    `{"acme":["${organization}"]}x`,
  ]) {
    const problems = problemsOf({ ...others, OIDC_ORGANIZATION_CLAIM: 'tid', OIDC_ORGANIZATIONS: pairs });
    t.match(problems, [/^OIDC_ORGANIZATIONS must/], pairs);
  }
});

t.test('Postgres URLs with unencoded passwords or missing files are reported', async (t) => {
  const { LATCHKEY_KEYRING } = ownDatabase;
  for (const password of ['p@ss#1', 'p@ss?1', 'p@ss/1', 'a/b', 'a#b', 'a?b']) {
    const url = `postgres://u:${password}@db.example.com/latchkey`;
    const problems = problemsOf({ LATCHKEY_KEYRING, DATABASE_URL: url });
    t.match(problems, [/^DATABASE_URL must be a URL .* percent-encoded \(@ is %40\)/], password);
    t.notMatch(problems.join(), password);
    const encoded = `postgres://u:${encodeURIComponent(password)}@db.example.com/latchkey`;
    t.same(problemsOf({ LATCHKEY_KEYRING, DATABASE_URL: encoded }), []);
  }
  const url = 'postgres://u:p@db.example.com/latchkey';
  t.match(problemsOf({ LATCHKEY_KEYRING, DATABASE_URL: `${url}?sslmode=prefer` }), [
    /^DATABASE_URL has sslmode=prefer\. It must/,
  ]);
  t.match(problemsOf({ LATCHKEY_KEYRING, DATABASE_URL: `${url}?sslmode=require&sslrootcert=/no/ca.crt` }), [
    /^DATABASE_URL has sslrootcert=\/no\/ca\.crt, which cannot be read \(ENOENT\)/,
  ]);
  t.match(problemsOf({ LATCHKEY_KEYRING, DATABASE_URL: url, PGSSLROOTCERT: '/no/ca.crt' }), [
    /^PGSSLROOTCERT has .*cannot be read/,
  ]);
  t.match(problemsOf({ LATCHKEY_KEYRING, DATABASE_URL: url, PGSSLMODE: 'prefer' }), [/^PGSSLMODE must be one of/]);
  const read = (env: NodeJS.ProcessEnv) => readConfig({ LATCHKEY_KEYRING, ...env }).DATABASE_URL;
  t.equal(read({ DATABASE_URL: url }), url);
  t.equal(read({ DATABASE_URL: `${url}?sslmode=require&sslrootcert=system` }), `${url}?sslmode=verify-full`);
  t.equal(read({ DATABASE_URL: url, PGSSLMODE: 'disable' }), `${url}?sslmode=disable`);
});
