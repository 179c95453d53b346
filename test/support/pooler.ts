import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { freePort } from './ports.ts';
import { run } from './process.ts';

/** A real PgBouncer in front of the database. @returns the URL through it */
export async function poolerTo(t: Test, url: string): Promise<string> {
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
  // PgBouncer refuses to run as root, and its user must be able to read its settings.
  await chmod(directory, 0o755);
  const pooler = run(t, 'pgbouncer', [file], identity);
  await pooler.until(/process up/);
  const through = new URL(url);
  through.hostname = '127.0.0.1';
  through.port = String(listenPort);
  return through.href;
}
