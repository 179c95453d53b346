import { Redis } from 'ioredis';
import type { Test } from 'tap';
import { freePort } from './ports.ts';
import { type RunningProcess, run, type Scope } from './process.ts';

export interface RunningRedis {
  url: string;
  process: RunningProcess;
}

/**
 * A real Redis without persistence, stopped when the test ends.
 * @param directory where a replica stores what its primary sends
 */
export async function startRedis(t: Test, port?: number, directory?: string): Promise<RunningRedis> {
  const listenPort = port ?? (await freePort());
  const args = ['--port', String(listenPort), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'];
  if (directory !== undefined) args.push('--dir', directory);
  const process = run(t, 'redis-server', args);
  await process.until(/Ready to accept connections/);
  return { url: `redis://127.0.0.1:${listenPort}`, process };
}

/** A client that connects again after each loss, and is closed when the test ends. */
export function connectTo(t: Scope, port: number): Redis {
  const client = new Redis(port, '127.0.0.1', { maxRetriesPerRequest: 0, retryStrategy: () => 200 });
  client.on('error', () => undefined);
  t.teardown(() => client.disconnect());
  return client;
}
