import { spawnSync } from 'node:child_process';
import { mkdir, readFile, symlink } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import { generateKeyring } from '../src/crypto/keyring.ts';
import { createDatabase, roleOf } from './support/database.ts';
import { scratch } from './support/instance.ts';
import { request, run } from './support/process.ts';
import { t } from './support/tap.ts';

// `latchkey` on the PATH, as the README installs it from a packed file.

const { version } = JSON.parse(await readFile('package.json', 'utf8'));
const npmSettings = { npm_config_prefer_offline: 'true', npm_config_audit: 'false', npm_config_fund: 'false' };
const unreachable = /E(NOTFOUND|AI_AGAIN|NOTCACHED|TIMEDOUT|CONNREFUSED|NETUNREACH)\b/;

t.setTimeout(900_000);

/** Copies the sources that are built and packed, without earlier build results. */
async function copySources(folder: string): Promise<void> {
  const names = ['package.json', 'package-lock.json', 'tsconfig.json', 'tsconfig.build.json'];
  await mkdir(folder);
  for (const name of [...names, 'src', 'migrations', 'openapi', 'docs', 'README.md', 'LICENSE']) {
    spawnSync('cp', ['-r', path.resolve(name), path.join(folder, name)]);
  }
}

async function runToEnd(t: Test, program: string, args: string[], options: Parameters<typeof run>[3]) {
  const process = run(t, program, args, options);
  const { code } = await process.exited;
  return { code, stdout: process.stdout(), output: process.output() };
}

t.test('without the compiler, build and start print what is missing and what to do', async (t) => {
  const folder = path.join(await scratch(t), 'latchkey');
  await copySources(folder);
  for (const script of ['build', 'start']) {
    const { code, output } = await runToEnd(t, 'npm', ['run', '--silent', script], { cwd: folder, env: npmSettings });
    t.equal(code, 1);
    t.match(output, /^latchkey: .*development dependenc.*`npm ci && npm run build`.*`npm prune --omit=dev`/s, script);
  }
});

t.test('the packed and installed program has everything it needs', async (t) => {
  const home = await scratch(t);
  spawnSync('chmod', ['755', home]);
  const folder = path.join(home, 'sources');
  await copySources(folder);
  await symlink(path.resolve('node_modules'), path.join(folder, 'node_modules'));
  const packed = await runToEnd(t, 'npm', ['pack', '--silent'], { cwd: folder, env: npmSettings });
  t.equal(packed.stdout, `latchkey-${version}.tgz\n`, packed.output);
  const listed = await runToEnd(t, 'tar', ['-tzf', `latchkey-${version}.tgz`], { cwd: folder });
  const files = listed.stdout
    .trim()
    .split('\n')
    .map((name) => name.replace('package/', ''));
  for (const expected of [
    'dist/src/cli/latchkey.js',
    'dist/src/server.js',
    'openapi/openapi.json',
    'docs/quick-start.md',
  ]) {
    t.ok(files.includes(expected), expected);
  }
  const others = files.filter((file) => !/^(dist|openapi|docs)\//.test(file));
  t.same(others.sort(), ['LICENSE', 'README.md', 'package.json'], 'no sources are packed');
  const prefix = path.join(home, 'prefix');
  const install = () =>
    runToEnd(
      t,
      'timeout',
      ['--kill-after=5', '180', 'npm', 'install', '--global', '--prefix', prefix, `./latchkey-${version}.tgz`],
      { cwd: folder, env: npmSettings },
    );
  let installed = await install();
  // npm was seen to stop without a child process or an open connection; coreutils' timeout then ends with 124.
  if (installed.code === 124) installed = await install();
  if (installed.code !== 0 && unreachable.test(installed.output)) {
    t.pass('npm can install', { skip: 'its cache lacks something, and the registry cannot be reached' });
    return;
  }
  t.equal(installed.code, 0, installed.output);

  const otherFolder = path.join(home, 'elsewhere');
  await mkdir(otherFolder);
  const PATH = `${path.join(prefix, 'bin')}:${process.env['PATH']}`;
  const latchkey = (args: string[], env: NodeJS.ProcessEnv = {}) =>
    runToEnd(t, 'latchkey', args, { cwd: otherFolder, env: { PATH, ...env } });

  t.match(await latchkey(['--version']), { code: 0, stdout: `${version}\n` });
  t.match(await latchkey(['openapi']), { code: 0, stdout: await readFile('openapi/openapi.json', 'utf8') });
  t.match(await latchkey(['serve']), { code: 78, output: /DATABASE_URL or DATABASE_URL_FILE must be set/ });

  await t.test('try starts an embedded Postgres', async (t) => {
    const env = { LATCHKEY_DATA_DIR: path.join(home, 'data'), PORT: '0' };
    const trial = run(t, 'latchkey', ['try'], { cwd: otherFolder, env: { PATH, ...env } });
    await trial.until(/^curl .*\n/m, 60_000);
    const credentials = JSON.parse(await readFile(path.join(home, 'data', 'credentials.json'), 'utf8'));
    const { verifierToken: token, key, url } = credentials;
    const input = { method: 'POST', token, body: { key, permission: 'write' } };
    t.match((await request(`${url}/v1/verify`, input)).body, { valid: true });
    t.match(await latchkey(['doctor'], env), { code: 0, stdout: /^ok {6}The database can be reached/m });
    t.match(await latchkey(['bootstrap', '--operator'], env), { code: 0, stdout: /"operatorToken": "lk_o_/ });
    trial.child.kill('SIGTERM');
    t.same(await trial.exited, { code: 0, signal: null });
  });

  await t.test("serve runs on an external Postgres by the README's commands", async (t) => {
    const urls = await createDatabase(t, { migrated: false });
    const env = {
      DATABASE_URL: urls.app,
      MIGRATION_DATABASE_URL: urls.owner,
      APP_ROLE: roleOf(urls.app),
      LATCHKEY_KEYRING: generateKeyring(new Date()),
      PORT: '0',
    };
    t.match(await latchkey(['migrate'], env), { code: 0, stdout: /^applied: 0001-initial/ });
    const names = ['--organization', 'Example Inc', '--admin-email', 'ada@example.com'];
    t.match(await latchkey(['bootstrap', ...names], env), { code: 0, stdout: /"adminToken": "lk_a_/ });
    const served = run(t, 'latchkey', ['serve'], { cwd: otherFolder, env: { PATH, ...env } });
    const [, url = ''] = await served.until(/Server listening at (http:\/\/[^"]+)"/);
    t.equal((await request(`${url}/readyz`)).status, 200);
    t.match((await latchkey(['audit', 'verify'], env)).code, 0);
  });
});
