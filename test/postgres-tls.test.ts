import { chown, copyFile, mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../src/embedded-postgres/start.ts';
import { dbQuery, migrateAs } from './support/database.ts';
import { keyringText } from './support/keyrings.ts';
import { eventually, request, run, runEntry } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { snippetsOf } from './support/snippets.ts';
import { t } from './support/tap.ts';

// Postgres by TLS with a private authority, created by the commands of docs/operations.md.

async function startTlsPostgres(t: Test): Promise<{ postgres: EmbeddedPostgres; authority: string }> {
  const scratch = await mkdtemp(path.join(tmpdir(), 'latchkey-tls-'));
  t.teardown(() => rm(scratch, { recursive: true, force: true, maxRetries: 10 }));
  const [commands = ''] = await snippetsOf('docs/operations.md', 'Postgres by TLS', 'sh');
  const localCommands = commands.replace('DNS:db.example.com', 'DNS:localhost');
  t.not(localCommands, commands);
  const files = t.testdir({});
  const shell = run(t, 'sh', ['-euc', localCommands], { cwd: files });
  t.equal((await shell.exited).code, 0, shell.output());
  const postgres = await startEmbeddedPostgres({
    dataDirectory: scratch,
    copiesDirectory: path.join(scratch, 'programs'),
    port: 0,
  });
  t.teardown(() => postgres.stop());
  const cluster = path.join(postgres.dataDirectory, 'postgres');
  const { uid, gid } = await stat(cluster);
  for (const name of ['server.crt', 'server.key']) {
    await copyFile(path.join(files, name), path.join(cluster, name));
    await chown(path.join(cluster, name), uid, gid);
  }
  await dbQuery(postgres.urls.superuser, 'alter system set ssl = on');
  await dbQuery(postgres.urls.superuser, 'select pg_reload_conf()');
  await migrateAs(postgres.urls);
  return { postgres, authority: path.join(files, 'ca.crt') };
}

function doctor(t: Test, DATABASE_URL: string, env: NodeJS.ProcessEnv = {}) {
  const LATCHKEY_KEYRING = keyringText('new');
  const command = runEntry(t, 'cli/latchkey.ts', ['doctor'], { env: { DATABASE_URL, LATCHKEY_KEYRING, ...env } });
  return command.exited.then(({ code }) => ({ code, output: command.output() }));
}

t.test(
  'a private authority can be set by PGSSLROOTCERT or in the URL',
  { skip: unlessInstalled('openssl') },
  async (t) => {
    const { postgres, authority } = await startTlsPostgres(t);
    const plain = postgres.urls.app.replace('127.0.0.1', 'localhost');
    const verified =
      /^ok {6}The connection to Postgres is encrypted \(TLSv1\.\d\), and its certificate was verified\.$/m;
    for (const mode of ['require', 'verify-ca', 'verify-full']) {
      const inUrl = await doctor(t, `${plain}?sslmode=${mode}&sslrootcert=${authority}`);
      t.match(inUrl, { code: 0, output: verified }, mode);
      t.notMatch(inUrl.output, /Warning/, 'pg prints no warning');
    }
    t.match(await doctor(t, `${plain}?sslmode=require`, { PGSSLROOTCERT: authority }), { code: 0, output: verified });
    const asVariables = { PGSSLROOTCERT: authority, PGSSLMODE: 'verify-full' };
    t.match(await doctor(t, plain, asVariables), { code: 0, output: verified });
    t.match(await doctor(t, `${plain}?sslmode=no-verify`), { code: 0, output: /^warning .*was not verified\. /m });
    t.match(await doctor(t, plain), {
      code: 0,
      output: /^ok {6}.*is not encrypted, and does not leave this machine\.$/m,
    });

    for (const [url, env, remedy] of [
      [`${plain}?sslmode=require`, {}, /certificate.*in PGSSLROOTCERT, or as sslrootcert= in DATABASE_URL\./],
      [
        `${postgres.urls.app}?sslmode=verify-full`,
        { PGSSLROOTCERT: authority },
        /altnames.*for another host: use a host name of the certificate in DATABASE_URL/,
      ],
      [plain.replace(/latchkey_app:[^@]+/, 'latchkey_app:wrong'), {}, /password in DATABASE_URL correct\? .*%40/],
      [plain.replace('@localhost', '@ss'), {}, /Is ss the host in DATABASE_URL\?/],
    ] as const) {
      t.match(await doctor(t, url, env), { code: 1, output: remedy });
    }

    // Every connection uses TLS: the pool, the change feed and the jobs.
    const env = { DATABASE_URL: plain, LATCHKEY_KEYRING: keyringText('new'), PORT: '0', ...asVariables };
    const service = runEntry(t, 'cli/latchkey.ts', ['serve'], { env });
    const [, url = ''] = await service.until(/Server listening at (http:\/\/[^"]+)"/);
    t.equal((await request(`${url}/readyz?for=management`)).status, 200);
    const connections = await eventually(async () => {
      const rows = await dbQuery(
        postgres.urls.superuser,
        `select application_name, bool_and(ssl) as encrypted from pg_stat_ssl join pg_stat_activity using (pid)
       where usename = 'latchkey_app' group by 1 order by 1`,
      );
      return rows.length >= 2 && rows;
    });
    t.ok(
      connections.every(({ encrypted }) => encrypted === true),
      JSON.stringify(connections),
    );
  },
);

t.test('a Postgres without TLS is reported by name', async (t) => {
  const scratch = await mkdtemp(path.join(tmpdir(), 'latchkey-tls-'));
  t.teardown(() => rm(scratch, { recursive: true, force: true, maxRetries: 10 }));
  const postgres = await startEmbeddedPostgres({
    dataDirectory: scratch,
    copiesDirectory: path.join(scratch, 'p'),
    port: 0,
  });
  t.teardown(() => postgres.stop());
  t.match(await doctor(t, `${postgres.urls.app}?sslmode=verify-full`), {
    code: 1,
    output: /does not support TLS: set ssl = on/,
  });
});
