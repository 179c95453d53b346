import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { freePort } from './ports.ts';
import { type RunningProcess, run, type Scope } from './process.ts';

/** A real PgBouncer, stopped when the test ends. */
export interface RunningPooler {
  process: RunningProcess;
  /** Starts it again after its end. */
  restart(): Promise<void>;
  /** Replaces the settings while it runs. */
  reload(settings: PoolerSettings): Promise<void>;
}

/** The text of pgbouncer.ini, given the folder of its other files. */
export type PoolerSettings = (directory: string) => string;

/** @param users the text of userlist.txt */
export async function startPooler(t: Scope, settings: PoolerSettings, users = ''): Promise<RunningPooler> {
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-pooler-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const file = path.join(directory, 'pgbouncer.ini');
  const write = (text: PoolerSettings) => writeFile(file, text(directory), { mode: 0o644 });
  await write(settings);
  await writeFile(path.join(directory, 'userlist.txt'), users, { mode: 0o644 });
  const identity = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
  // PgBouncer refuses to run as root, and its user must be able to read its settings.
  await chmod(directory, 0o755);
  const start = async () => {
    const started = run(t, 'pgbouncer', [file], identity);
    await started.until(/process up/);
    return started;
  };
  const pooler: RunningPooler = {
    process: await start(),
    async restart() {
      pooler.process = await start();
    },
    async reload(changed) {
      await write(changed);
      pooler.process.child.kill('SIGHUP');
    },
  };
  return pooler;
}

/** A PgBouncer by transaction in front of the database. @returns the URL through it */
export async function poolerTo(t: Scope, url: string): Promise<string> {
  const { hostname, port, username, password, pathname } = new URL(url);
  const listenPort = await freePort();
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
  await startPooler(t, () => `${settings.join('\n')}\n`);
  const through = new URL(url);
  through.hostname = '127.0.0.1';
  through.port = String(listenPort);
  return through.href;
}
