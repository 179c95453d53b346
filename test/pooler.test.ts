import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { startService } from './support/app.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { freePort } from './support/ports.ts';
import { eventually, run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';

// A pooler that hands out connections by transaction delivers no notifications, and says nothing about it.

/** A real PgBouncer in front of the database. @returns the URL that leads through it */
async function poolerTo(t: Test, url: string): Promise<string> {
  const { hostname, port, username, password, pathname } = new URL(url);
  const listenPort = await freePort();
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-pooler-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const target = `host=${hostname} port=${port || 5432} user=${username} password=${decodeURIComponent(password)}`;
  const settings = [
    '[databases]',
    `* = ${target} dbname=${pathname.slice(1)}`,
    '[pgbouncer]',
    'listen_addr = 127.0.0.1',
    `listen_port = ${listenPort}`,
    'unix_socket_dir =',
    'auth_type = any',
    'pool_mode = transaction',
    'ignore_startup_parameters = extra_float_digits',
  ];
  const file = path.join(directory, 'pgbouncer.ini');
  await writeFile(file, `${settings.join('\n')}\n`, { mode: 0o644 });
  const identity = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
  // PgBouncer refuses to run as root, and whoever else it runs as must reach its settings.
  await chmod(directory, 0o755);
  const pooler = run(t, 'pgbouncer', [file], identity);
  await pooler.until(/process up/);
  const through = new URL(url);
  through.hostname = '127.0.0.1';
  through.port = String(listenPort);
  return through.href;
}

t.test('a transaction pooler', { skip: unlessInstalled('pgbouncer') }, async (t) => {
  const urls = await createDatabase(t);
  const pooled = await poolerTo(t, urls.app);

  await t.test('listening through it: nothing is answered from memory, and the log says what to set', async (t) => {
    const service = await startService(t, { urls, state: { listenUrl: pooled } });
    const { body: key } = await service.admin.post('/v1/keys', {});
    const ask = async () =>
      (await service.verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code as string;
    t.equal(await ask(), 'valid');
    await dbQuery(urls.superuser, 'update api_keys set suspended_at = now() where id = $1', [key.id]);
    t.equal(await ask(), 'suspended');
    await eventually(async () =>
      service.logLines.join('').includes('LISTEN_DATABASE_URL must lead to the same database'),
    );
    t.equal(service.verification.feed.isLive(), false);
  });
});

t.test('listening to another database: nothing is answered from memory, and the log says so', async (t) => {
  const elsewhere = await createDatabase(t);
  const service = await startService(t, { state: { listenUrl: elsewhere.app } });
  const { body: key } = await service.admin.post('/v1/keys', {});
  const ask = async () =>
    (await service.verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code as string;
  t.equal(await ask(), 'valid');
  await dbQuery(service.urls.superuser, 'update api_keys set suspended_at = now() where id = $1', [key.id]);
  t.equal(await ask(), 'suspended');
  await eventually(async () =>
    service.logLines.join('').includes('LISTEN_DATABASE_URL must lead to the same database'),
  );
  t.equal(service.verification.feed.isLive(), false);
});
