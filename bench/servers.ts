import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

/** What a server's process uses now, and has used since its start. */
export interface ProcessStats {
  rssBytes: number;
  /** Heap and buffers in use. */
  usedBytes: number;
  cpuMicros: number;
  argon2Runs: number;
  /** Open files and sockets; 0 on systems without /proc. */
  descriptors: number;
}

/** A server in a separate process. */
export interface Server {
  port: number;
  /** @param collectGarbage collect first, so that `usedBytes` contains only live objects */
  stats(collectGarbage?: boolean): Promise<ProcessStats>;
  stop(): Promise<void>;
}

const probe = path.join(import.meta.dirname, 'probe.mjs');
/** The flags of `npm start`; see docs/performance.md. */
const nodeFlags = ['--min-semi-space-size=16', '--heap-growing-percent=100'];
const startTimeoutMs = 20_000;
const stopTimeoutMs = 12_000;

/** Starts `entry` and waits until `/readyz` succeeds. The log is discarded. */
export async function startServer(
  entry: string,
  { env = {}, imports = [] }: { env?: NodeJS.ProcessEnv; imports?: string[] } = {},
): Promise<Server> {
  const port = await freePort();
  const args = [...nodeFlags, '--expose-gc', ...[...imports, probe].map((name) => `--import=${name}`), entry];
  const child = spawn(process.execPath, args, {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    env: { PATH: process.env['PATH'], NODE_ENV: 'production', HOST: '127.0.0.1', PORT: String(port), ...env },
  });
  const server = {
    port,
    async stats(collectGarbage = false) {
      child.send({ collectGarbage });
      const [stats] = (await once(child, 'message')) as [ProcessStats];
      return stats;
    },
    stop: () => stop(child),
  };
  await waitUntilReady(child, port, entry);
  return server;
}

async function waitUntilReady(child: ChildProcess, port: number, entry: string): Promise<void> {
  for (const deadline = Date.now() + startTimeoutMs; Date.now() < deadline; await delay(50)) {
    if (child.exitCode !== null) break;
    const isReady = await fetch(`http://127.0.0.1:${port}/readyz`).then(
      (response) => response.ok,
      () => false,
    );
    if (isReady) return;
  }
  await stop(child);
  throw new Error(`${entry} did not start`);
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), stopTimeoutMs);
  await exited;
  clearTimeout(timer);
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('the server has no port');
  return address.port;
}
