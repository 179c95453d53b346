import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Account } from './account.ts';
import { EmbeddedPostgresError } from './failure.ts';
import { findProcess, identityOf } from './processes.ts';
import type { Programs } from './programs.ts';
import type { Supervised } from './supervisor.ts';

export interface PostmasterOptions {
  cluster: string;
  programs: Programs;
  account: Account | undefined;
  logFile: string;
  /** The preferred port. If it is not free, another one is used. */
  port: number;
  /** Further settings of Postgres, by name. */
  settings: Record<string, string>;
}

export interface Postmaster {
  port: number;
  pid: number;
  /** Resolves when Postgres has ended, for any reason. */
  ended: Promise<void>;
  stop(): Promise<void>;
}

/** After a kill, the pid file, shared memory and child processes need a moment to disappear. */
const patienceMs = 20_000;
const pollMs = 50;

/**
 * Starts Postgres on the cluster and waits until it accepts connections. If a killed Latchkey left a Postgres behind,
 * waits for its end, or ends it if no supervisor will.
 * @throws EmbeddedPostgresError `in_use` (another running Latchkey uses the cluster), `start_failed`
 */
export async function startPostmaster(options: PostmasterOptions): Promise<Postmaster> {
  const deadline = performance.now() + patienceMs;
  let port = await freePort(options.port);
  for (;;) {
    await awaitFreeCluster(options.cluster, deadline);
    const started = await tryToStart(options, port);
    if (typeof started !== 'string') return started;
    if (/could not (bind|create any TCP)/.test(started)) port = await freePort(0);
    else if (!/already exists|pre-existing shared memory|is the data directory .* in use/.test(started)) {
      throw failed(options.logFile, started);
    }
    if (performance.now() > deadline) throw failed(options.logFile, started);
    await delay(pollMs * 4);
  }
}

function failed(logFile: string, log: string): EmbeddedPostgresError {
  return new EmbeddedPostgresError(
    'start_failed',
    `The embedded Postgres did not start. The end of ${logFile}:\n${log.slice(-2_000).trim()}\n` +
      'Fix that, or set DATABASE_URL to a Postgres of your own.',
  );
}

/** `postmaster.pid`: the process id in the first line, and in the eighth whether connections are accepted. */
async function readPidFile(cluster: string): Promise<{ pid: number; ready: boolean } | undefined> {
  const lines = (await readFile(path.join(cluster, 'postmaster.pid'), 'utf8').catch(() => '')).split('\n');
  const pid = Number(lines[0]);
  return Number.isInteger(pid) && pid > 0 ? { pid, ready: lines[7]?.trim() === 'ready' } : undefined;
}

async function awaitFreeCluster(cluster: string, deadline: number): Promise<void> {
  for (;;) {
    const file = await readPidFile(cluster);
    const postgres = file === undefined ? undefined : await findProcess(file.pid);
    // A file that names another kind of process is from before a reboot. Postgres itself removes it.
    if (file === undefined || postgres === undefined || !postgres.command.includes(cluster)) return;
    const keeper = await keeperOf(postgres.parent);
    if (keeper === 'alive') {
      throw new EmbeddedPostgresError(
        'in_use',
        `Another Latchkey is running on ${path.dirname(cluster)} (its Postgres is process ${file.pid}). Stop it first, ` +
          'or give this one its own folder with LATCHKEY_DATA_DIR.',
      );
    }
    if (keeper === 'none') process.kill(file.pid, 'SIGINT');
    if (performance.now() > deadline) {
      throw new EmbeddedPostgresError(
        'in_use',
        `A Postgres of an earlier Latchkey (process ${file.pid}) does not end. End that process, then start again.`,
      );
    }
    await delay(pollMs * 4);
  }
}

/**
 * The supervisor of a running Postgres: one whose Latchkey is running, one whose Latchkey is gone and that will end it,
 * or none.
 */
async function keeperOf(pid: number): Promise<'alive' | 'leaving' | 'none'> {
  const supervisor = await findProcess(pid);
  const [, latchkey] = / latchkey-of=(\d+) /.exec(supervisor?.command ?? '') ?? [];
  if (supervisor === undefined || latchkey === undefined) return 'none';
  return supervisor.parent === Number(latchkey) ? 'alive' : 'leaving';
}

/** @returns the running Postgres, or its log if it did not start */
async function tryToStart(options: PostmasterOptions, port: number): Promise<Postmaster | string> {
  const supervisor = supervise(options, port);
  const ended = once(supervisor, 'exit').then(() => undefined);
  let gone = false;
  void ended.then(() => {
    gone = true;
  });
  while (!gone) {
    const file = await readPidFile(options.cluster);
    const process_ = file?.ready ? await findProcess(file.pid) : undefined;
    if (file !== undefined && process_?.parent === supervisor.pid) {
      return { port, pid: file.pid, ended, stop: () => stop(supervisor, file.pid, ended) };
    }
    await delay(pollMs);
  }
  return readFile(options.logFile, 'utf8').catch((error: unknown) => String(error));
}

function supervise(options: PostmasterOptions, port: number): ChildProcess {
  const settings = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    port: String(port),
    ...options.settings,
  };
  const supervised: Supervised = {
    program: options.programs.postgres,
    args: ['-D', options.cluster, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])],
    identity: identityOf(options.account),
    logFile: options.logFile,
  };
  // The supervisor has the same extension as this file: .js in the build, .ts in the sources.
  const file = fileURLToPath(new URL(`./supervisor${path.extname(import.meta.url)}`, import.meta.url));
  const supervisor = fork(file, [`latchkey-of=${process.pid}`, JSON.stringify(supervised)], {
    // A session of its own, so that Ctrl-C reaches only Latchkey, which needs its database for an orderly shutdown.
    detached: true,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  });
  supervisor.unref();
  supervisor.channel?.unref();
  return supervisor;
}

async function stop(supervisor: ChildProcess, postgresPid: number, ended: Promise<void>): Promise<void> {
  if (supervisor.connected) supervisor.send('stop');
  // The supervisor was killed, so nothing else ends its Postgres.
  else if ((await findProcess(postgresPid)) !== undefined) process.kill(postgresPid, 'SIGINT');
  supervisor.ref();
  await ended;
  while ((await findProcess(postgresPid)) !== undefined) await delay(pollMs);
}

/** The port if it is free on 127.0.0.1, otherwise one that the system chooses. */
async function freePort(wanted: number): Promise<number> {
  const server = createServer();
  return new Promise((resolve, reject) => {
    server.once('error', () => (wanted === 0 ? reject(new Error('No port is free')) : resolve(freePort(0))));
    server.listen({ port: wanted, host: '127.0.0.1', exclusive: true }, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : wanted));
    });
  });
}
