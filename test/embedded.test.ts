import { spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import path from 'node:path';
import type { Test } from 'tap';
import { findProcess } from '../src/embedded-postgres/processes.ts';
import { findPrograms } from '../src/embedded-postgres/programs.ts';
import { type Instance, scratch, start } from './support/instance.ts';
import { eventually, request, runEntry } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

/** False while another process uses the port, such as an instance of another test file. */
async function occupy(t: Test, port: number): Promise<boolean> {
  const server = createServer();
  const listening = once(server, 'listening');
  server.listen(port, '127.0.0.1');
  const taken = await listening.then(
    () => true,
    () => false,
  );
  if (taken) t.teardown(() => void server.close());
  return taken;
}

async function postmasterPid(directory: string): Promise<number> {
  return Number((await readFile(path.join(directory, 'postgres', 'postmaster.pid'), 'utf8')).split('\n')[0]);
}

async function addKey({ url, credentials }: Instance): Promise<string> {
  const { adminToken: token = '' } = await credentials();
  // A new partner for each key, because the organization's row has only one free place.
  const partner = { email: `${randomUUID()}@partner.example`, permissions: ['read'] };
  const { status, body } = await request(`${url}/v1/partners`, { method: 'POST', token, body: partner });
  if (status !== 201) throw new Error(JSON.stringify(body));
  return body.keys[0].key;
}

async function verdict({ url, credentials }: Instance, key: string): Promise<string> {
  const { verifierToken: token = '' } = await credentials();
  const { body } = await request(`${url}/v1/verify`, { method: 'POST', token, body: { key, permission: 'read' } });
  return body.code;
}

const isGone = async (pid: number) => (await findProcess(pid)) === undefined;

t.test('a first start, its printed lines, and a second start', async (t) => {
  const directory = await scratch(t);
  const first = await start(t, directory);
  t.equal((await request(`${first.url}/readyz`)).status, 200);

  await t.test('credentials.json has all credentials, readable only by its owner', async (t) => {
    const credentials = await first.credentials();
    t.match(credentials, {
      organizationId: /^org_/,
      adminToken: /^lk_a_/,
      verifierToken: /^lk_v_/,
      operatorToken: /^lk_o_/,
      key: /^lk_k_/,
      url: first.url,
      databaseUrl: /^postgres:\/\/latchkey_app:/,
      migrationDatabaseUrl: /^postgres:\/\/latchkey_owner:/,
      keyringFile: path.join(directory, 'keyring'),
    });
    for (const file of ['credentials.json', 'keyring', 'postgres.log']) {
      t.equal((await stat(path.join(directory, file))).mode & 0o777, 0o600, file);
    }
    const { body: self } = await request(`${first.url}/v1/self`, { token: credentials['adminToken'] ?? '' });
    t.match(self, { role: 'admin', email: 'admin@example.com' });
  });

  await t.test('three short lines are printed, without a token, and the last one is a working command', async (t) => {
    const credentials = await first.credentials();
    await first.process.until(/^curl /m);
    const printed = first.process
      .stdout()
      .split('\n\n')
      .find((part) => part.includes('Latchkey listens on'));
    const lines = printed?.trim().split('\n') ?? [];
    t.equal(lines.length, 3);
    t.match(lines[0], first.url);
    t.equal(lines[1], `The tokens and a first key are in ${path.join(directory, 'credentials.json')}`);
    for (const line of lines) t.ok(line.length < 300, line);
    for (const name of ['adminToken', 'verifierToken', 'operatorToken', 'key']) {
      t.notMatch(first.process.output(), credentials[name], `${name} is not printed`);
    }
    if (unlessInstalled('curl') || unlessInstalled('jq')) return;
    const { stdout } = spawnSync('bash', ['-c', lines[2] ?? ''], { encoding: 'utf8' });
    t.match(JSON.parse(stdout), { valid: true, code: 'valid', permission: 'read_write' });
    const { body: history } = await request(`${first.url}/v1/history?limit=1`, {
      token: credentials['adminToken'] ?? '',
    });
    t.match(history.data, [{ action: 'key.created', actor: { type: 'system', id: 'bootstrap' } }]);
  });

  const key = await addKey(first);
  const before = await first.credentials();
  const pid = await postmasterPid(directory);
  first.process.child.kill('SIGTERM');
  t.same(await first.process.exited, { code: 0, signal: null });
  t.ok(await isGone(pid), 'no server process is left behind');

  await t.test('a second start finds its data and prints no tokens', async (t) => {
    const second = await start(t, directory);
    t.equal(await verdict(second, key), 'valid');
    const { databaseUrl, migrationDatabaseUrl, url, ...now } = await second.credentials();
    const { databaseUrl: _, migrationDatabaseUrl: __, url: ___, ...then } = before;
    t.same(now, then);
    t.equal(url, second.url);
    t.notMatch(second.process.output(), before['adminToken']);
    t.match(second.process.output(), path.join(directory, 'credentials.json'));
  });

  await t.test('a moved credentials.json is not written again', async (t) => {
    await rm(path.join(directory, 'credentials.json'));
    const third = await start(t, directory);
    t.equal((await request(`${third.url}/v1/self`, { token: before['adminToken'] ?? '' })).status, 200);
    t.notOk(existsSync(path.join(directory, 'credentials.json')));
    await third.process.until(/The file with the tokens, .* has been moved or deleted/);
  });
});

t.test('a start that was killed during the bootstrap is completed or repeated', async (t) => {
  const directory = await scratch(t);
  await writeFile(
    path.join(directory, 'credentials.prepared.json'),
    '{"adminToken":"of a bootstrap that was never committed"}',
  );
  const first = await start(t, directory);
  const { adminToken = '' } = await first.credentials();
  t.match(adminToken, /^lk_a_/);
  first.process.child.kill('SIGTERM');
  await first.process.exited;
  // As if the process was killed after the commit and before the file was renamed.
  await rename(path.join(directory, 'credentials.json'), path.join(directory, 'credentials.prepared.json'));
  const second = await start(t, directory);
  t.equal((await second.credentials())['adminToken'], adminToken);
});

t.test('if any process is killed, nothing acknowledged is lost, and the instance recovers by itself', async (t) => {
  const directory = await scratch(t);
  let instance = await start(t, directory);
  const keys = [await addKey(instance)];

  await t.test('if the service is killed, its Postgres ends', async (t) => {
    const pid = await postmasterPid(directory);
    instance.process.child.kill('SIGKILL');
    await instance.process.exited;
    await eventually(() => isGone(pid));
    instance = await start(t.parent as Test, directory);
    t.equal(await verdict(instance, keys[0] ?? ''), 'valid');
  });

  await t.test('if the service is killed and started at once, it works', async (t) => {
    keys.push(await addKey(instance));
    instance.process.child.kill('SIGKILL');
    instance = await start(t.parent as Test, directory);
    t.equal(await verdict(instance, keys[1] ?? ''), 'valid');
  });

  await t.test('if the service and the watchdog are killed, the next start ends the old Postgres', async (t) => {
    const pid = await postmasterPid(directory);
    const watchdog = (await findProcess(pid))?.parent ?? 0;
    t.match((await findProcess(watchdog))?.command, /supervisor/);
    process.kill(watchdog, 'SIGSTOP');
    instance.process.child.kill('SIGKILL');
    await instance.process.exited;
    process.kill(watchdog, 'SIGKILL');
    t.notOk(await isGone(pid), 'the old Postgres still runs');
    instance = await start(t.parent as Test, directory);
    t.ok(await isGone(pid));
    t.equal(await verdict(instance, keys[1] ?? ''), 'valid');
  });

  await t.test(
    'a signal to every process, as from a service manager, does not end Postgres before Latchkey',
    async (t) => {
      const pid = await postmasterPid(directory);
      const watchdog = (await findProcess(pid))?.parent ?? 0;
      for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM'] as const) process.kill(watchdog, signal);
      t.equal(await verdict(instance, keys[0] ?? ''), 'valid');
      t.notOk(await isGone(watchdog));
      t.equal(await postmasterPid(directory), pid);
    },
  );

  await t.test('if Postgres is killed, it is started again under the running service', async (t) => {
    const pid = await postmasterPid(directory);
    process.kill(pid, 'SIGKILL');
    await eventually(async () => {
      const file = await postmasterPid(directory).catch(() => pid);
      return file !== pid && (await request(`${instance.url}/readyz?for=management`)).status === 200;
    });
    t.equal(await verdict(instance, keys[0] ?? ''), 'valid');
    const { body } = await request(`${instance.url}/v1/history/verify`, {
      token: (await instance.credentials())['adminToken'] ?? '',
    });
    t.match(body, { valid: true });
  });

  await t.test('a second instance on the same data reports that it is in use', async (t) => {
    const second = runEntry(t, 'server.ts', [], { env: { PORT: '0', LATCHKEY_DATA_DIR: directory } });
    t.equal((await second.exited).code, 1);
    t.match(second.output(), /Another Latchkey is running on .*LATCHKEY_DATA_DIR/);
    t.equal(await verdict(instance, keys[0] ?? ''), 'valid', 'the first instance continues');
  });
});

t.test('if the default ports are in use, other ports are chosen and printed', async (t) => {
  // A port that another program already uses counts as taken.
  for (const port of [8_080, 54_329]) await eventually(() => occupy(t, port)).catch(() => undefined);
  const directory = await scratch(t);
  const instance = await start(t, directory, { PORT: '' });
  t.match(instance.process.output(), /Port 8080 is taken/);
  t.match(instance.process.output(), /Port 54329 is taken/);
  t.equal((await request(`${instance.url}/readyz`)).status, 200);

  const fixedPort = runEntry(t, 'server.ts', [], { env: { PORT: '8080', LATCHKEY_DATA_DIR: await scratch(t) } });
  t.equal((await fixedPort.exited).code, 1, 'a configured port is not replaced');
  t.match(fixedPort.output(), /EADDRINUSE.*8080.*or set another one/);
});

t.test('without an embedded Postgres the error names DATABASE_URL', async (t) => {
  const directory = await scratch(t);
  for (const platform of ['win32-x64', 'freebsd-x64', 'linux-s390x']) {
    const found = findPrograms(directory, undefined, platform);
    await t.rejects(found, { failure: 'unsupported_platform', message: /DATABASE_URL/ });
  }
  const otherPlatform = process.platform === 'darwin' ? 'linux-x64' : 'darwin-arm64';
  await t.rejects(findPrograms(directory, undefined, otherPlatform), {
    failure: 'programs_unusable',
    message: /npm ci.*DATABASE_URL/,
  });
});
