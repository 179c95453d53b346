import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

/** What a server's process has cost since it began. */
export interface Facts {
  rssBytes: number;
  /** Heap and buffers in use. */
  usedBytes: number;
  cpuMicros: number;
  argon2Runs: number;
  /** Files and sockets that are open; 0 where the system does not say. */
  descriptors: number;
}

/** A server in a process of its own. */
export interface Server {
  port: number;
  /** @param collectFirst collect garbage before: then `usedBytes` is what is really kept */
  facts(collectFirst?: boolean): Promise<Facts>;
  stop(): Promise<void>;
}

const probe = path.join(import.meta.dirname, 'probe.mjs');
/** What `npm start` gives to Node; see docs/performance.md. */
const nodeFlags = ['--min-semi-space-size=16', '--heap-growing-percent=100'];
const readyWithinMs = 20_000;
const stopWithinMs = 12_000;

/** Starts `entry` and waits until it answers `/readyz`. Its log goes nowhere, which costs every server the same. */
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
    async facts(collectFirst = false) {
      child.send({ collectFirst });
      const [facts] = (await once(child, 'message')) as [Facts];
      return facts;
    },
    stop: () => stop(child),
  };
  await untilReady(child, port, entry);
  return server;
}

async function untilReady(child: ChildProcess, port: number, entry: string): Promise<void> {
  for (const deadline = Date.now() + readyWithinMs; Date.now() < deadline; await delay(50)) {
    if (child.exitCode !== null) break;
    const isReady = await fetch(`http://127.0.0.1:${port}/readyz`).then(
      (reply) => reply.ok,
      () => false,
    );
    if (isReady) return;
  }
  await stop(child);
  throw new Error(`${entry} did not start`);
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), stopWithinMs);
  await ended;
  clearTimeout(timer);
}

/** One that nobody listens on right now. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('no port');
  return address.port;
}
