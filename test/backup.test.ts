import { existsSync, readdirSync } from 'node:fs';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { chooseAccount } from '../src/embedded-postgres/account.ts';
import { dbQuery } from './support/database.ts';
import { keyringText } from './support/keyrings.ts';
import { freePort } from './support/ports.ts';
import { compiled, eventually, request, run, runEntry } from './support/process.ts';
import { snippetsOf } from './support/snippets.ts';
import { t } from './support/tap.ts';
import { startReceiver } from './support/webhooks.ts';

// Runs the backup and restore commands of docs/operations.md with the installed Postgres programs.

const root = '/usr/lib/postgresql';
const versions = existsSync(root) ? readdirSync(root).filter((version) => Number(version) >= 15) : [];
const programs = versions.map((version) => path.join(root, version, 'bin')).find((bin) => existsSync(`${bin}/initdb`));
const skip = programs === undefined && 'no server of Postgres is installed below /usr/lib/postgresql';

/** A server of the same version as the installed pg_dump and pg_restore, which do not work with a newer server. */
async function startPostgres(t: Test, bin: string): Promise<string> {
  const scratch = await mkdtemp(path.join(tmpdir(), 'latchkey-backup-'));
  t.teardown(() => rm(scratch, { recursive: true, force: true, maxRetries: 10 }));
  await chmod(scratch, 0o777);
  const account = await chooseAccount(path.join(scratch, 'data'));
  const as = account === undefined ? {} : { uid: account.uid, gid: account.gid };
  const data = path.join(scratch, 'data');
  const options = ['--username=postgres', '--auth=trust', '--encoding=UTF8', '--locale=C', '--no-sync'];
  const initdb = run(t, `${bin}/initdb`, ['-D', data, ...options], { cwd: scratch, ...as });
  t.equal((await initdb.exited).code, 0, initdb.output());
  const port = await freePort();
  const args = ['-D', data, '-p', String(port), '-c', 'unix_socket_directories=', '-c', 'listen_addresses=127.0.0.1'];
  const server = run(t, `${bin}/postgres`, args, { cwd: scratch, ...as });
  await server.until(/ready to accept connections/);
  return `postgres://postgres@127.0.0.1:${port}/postgres`;
}

t.test(
  'after the documented backup and restore, keys are valid, chains are intact and no webhook is called',
  { skip },
  async (t) => {
    const admin = await startPostgres(t, programs ?? '');
    await dbQuery(admin, "create role latchkey_owner login password 'o'");
    await dbQuery(admin, "create role latchkey_app login password 'a'");
    await dbQuery(admin, 'create database latchkey owner latchkey_owner');
    const { host } = new URL(admin);
    const folder = t.testdir({ bin: {} });
    const receiver = await startReceiver(t);
    const program = `#!/bin/sh\nexec "${process.execPath}" "${compiled('src/cli/latchkey.ts')}" "$@"\n`;
    await writeFile(path.join(folder, 'bin', 'latchkey'), program, { mode: 0o755 });
    const env = {
      PATH: `${folder}/bin:${programs}:${process.env['PATH']}`,
      ADMIN_DATABASE_URL: admin,
      MIGRATION_DATABASE_URL: `postgres://latchkey_owner:o@${host}/latchkey`,
      DATABASE_URL: `postgres://latchkey_app:a@${host}/latchkey`,
      LATCHKEY_KEYRING: keyringText('new'),
      CHECKPOINT_FILE: path.join(folder, 'checkpoints.txt'),
      WEBHOOK_ALLOW_HTTP: 'true',
      WEBHOOK_ALLOW_CIDRS: '127.0.0.1',
      PORT: '0',
      EVENT_LOOP_DELAY_LIMIT_MS: '60000',
    };
    const shell = async (commands: string, variables: NodeJS.ProcessEnv = env) => {
      const sh = run(t, 'sh', ['-euc', commands], { cwd: folder, env: variables });
      return { code: (await sh.exited).code, output: sh.output() };
    };
    const serve = async (variables: NodeJS.ProcessEnv) => {
      const service = runEntry(t, 'cli/latchkey.ts', ['serve'], { env: variables });
      const [, url = ''] = await service.until(/Server listening at (http:[^"]+)"/);
      return { service, url };
    };
    t.match(await shell('latchkey migrate'), { code: 0 });
    const bootstrapped = await shell("latchkey bootstrap --organization 'Example' --admin-email ada@example.com");
    t.equal(bootstrapped.code, 0, bootstrapped.output);
    const { adminToken: token = '', verifierToken = '' } = JSON.parse(
      /^\{.*?^\}/ms.exec(bootstrapped.output)?.[0] ?? '{}',
    );
    const first = await serve(env);
    const post = (url: string, where: string, body: unknown, by = token) =>
      request(`${url}/v1/${where}`, { method: 'POST', token: by, body });
    await post(first.url, 'webhooks', { url: receiver.url, events: ['key.created'] });
    const { body: key } = await post(first.url, 'keys', {});
    await eventually(async () => receiver.received.length === 1);
    await eventually(async () => /latchkey\/org_/.test(await readFile(env.CHECKPOINT_FILE, 'utf8').catch(() => '')));

    const [backup = '', , ...more] = await snippetsOf('docs/operations.md', 'Back up', 'sh');
    t.same(more, [], 'the other command is for Compose');
    const dumped = await shell(backup);
    t.equal(dumped.code, 0, dumped.output);
    first.service.child.kill('SIGTERM');
    await first.service.exited;

    const [restore = '', takeOver = ''] = await snippetsOf('docs/operations.md', 'Restore', 'sh');
    const restored = await shell(restore);
    t.equal(restored.code, 0, restored.output);
    t.match(restored.output, /This database was restored from another one/);
    const restoredEnv = {
      ...env,
      MIGRATION_DATABASE_URL: env.MIGRATION_DATABASE_URL.replace(/latchkey$/, 'restored'),
      DATABASE_URL: env.DATABASE_URL.replace(/latchkey$/, 'restored'),
      CHECKPOINT_FILE: path.join(folder, 'later.txt'),
    };
    const copy = await serve(restoredEnv);
    const verified = await post(copy.url, 'verify', { key: key.key, permission: 'read' }, verifierToken);
    t.match(verified.body, { valid: true });
    t.equal((await post(copy.url, `keys/${key.id}/reveal`, {})).body.key, key.key);
    t.equal((await post(copy.url, 'keys', {})).status, 201);
    t.match(copy.service.output(), /restored from another one\. No webhooks are sent/);
    copy.service.child.kill('SIGTERM');
    t.same(await copy.service.exited, { code: 0, signal: null });
    t.equal(receiver.received.length, 1, 'the rehearsal has called no webhook');

    const takenOver = await shell(takeOver, restoredEnv);
    t.equal(takenOver.code, 0, takenOver.output);
    const successor = await serve(restoredEnv);
    await eventually(async () => receiver.received.length === 2);
    t.notMatch(successor.service.output(), /restored from another/);
  },
);

t.test('each command of docs/operations.md is run by a test, or the page says that it is not', async (t) => {
  const page = await readFile('docs/operations.md', 'utf8');
  // The tests are postgres-tls, this file, installed and commands.
  const tested = ['Postgres by TLS', 'Back up', 'Restore', 'Install `latchkey`', 'Lost tokens'];
  for (const section of page.split(/^## /m).slice(1)) {
    const [title = ''] = section.split('\n', 1);
    if (!section.includes('```sh') || tested.includes(title)) continue;
    t.match(section, /[Nn]ot run by the tests|has not been started/, title);
  }
});
