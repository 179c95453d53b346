import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Redis } from 'ioredis';
import type { Test } from 'tap';
import { freePort } from './ports.ts';
import { eventually, type RunningProcess, run, untilListening } from './process.ts';
import { connectTo, startRedis } from './redis.ts';
import { fill, snippetsOf } from './snippets.ts';

interface SentinelServer {
  port: number;
  process: RunningProcess;
  client: Redis;
  /** Starts the server again after its end, as a primary without counts. */
  restart(): Promise<void>;
}

/** A Redis primary and its replica, three Sentinels, and HAProxy, as docs/scaling.md configures them. */
export interface SentinelPair {
  /** Leads to HAProxy. */
  url: string;
  primary: SentinelServer;
  replica: SentinelServer;
  balancer: RunningProcess;
}

const sentinelCount = 3;

export async function startSentinelPair(t: Test): Promise<SentinelPair> {
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-sentinel-'));
  t.teardown(() => rm(directory, { recursive: true, force: true, maxRetries: 10 }));
  const startServer = async (): Promise<SentinelServer> => {
    const port = await freePort();
    const ownDirectory = await mkdtemp(path.join(directory, 'redis-'));
    const start = async () => (await startRedis(t, port, ownDirectory)).process;
    const server: SentinelServer = {
      port,
      process: await start(),
      client: connectTo(t, port),
      async restart() {
        server.process = await start();
      },
    };
    return server;
  };
  const primary = await startServer();
  const replica = await startServer();
  await replica.client.replicaof('127.0.0.1', primary.port);
  await eventually(async () => (await replica.client.info('replication')).includes('master_link_status:up'));

  const [settings] = await snippetsOf('docs/scaling.md', 'Replicas', 'conf');
  const sentinels: Redis[] = [];
  for (let index = 0; index < sentinelCount; index++) {
    const port = await freePort();
    const places = { '26379': String(port), '10.0.0.31 6379': `127.0.0.1 ${primary.port}` };
    // Sentinel writes into its file what it learns.
    const file = path.join(directory, `sentinel${index}.conf`);
    await writeFile(file, `bind 127.0.0.1\ndir ${directory}\n${fill(settings, places)}`);
    await untilListening(port, run(t, 'redis-server', [file, '--sentinel']));
    sentinels.push(connectTo(t, port));
  }
  await eventually(async () => {
    const answers = sentinels.map(async (sentinel) => {
      const quorum = await sentinel.call('SENTINEL', 'CKQUORUM', 'latchkey').catch(String);
      const replicas = (await sentinel.call('SENTINEL', 'REPLICAS', 'latchkey')) as unknown[];
      return String(quorum).startsWith(`OK ${sentinelCount}`) && replicas.length === 1;
    });
    return (await Promise.all(answers)).every(Boolean);
  });

  const snippet = (await snippetsOf('docs/scaling.md', 'Replicas', 'haproxy')).at(-1);
  const port = await freePort();
  const file = path.join(directory, 'haproxy.cfg');
  const places = {
    'bind :6379': `bind 127.0.0.1:${port}`,
    '10.0.0.31:6379': `127.0.0.1:${primary.port}`,
    '10.0.0.32:6379': `127.0.0.1:${replica.port}`,
  };
  await writeFile(file, fill(snippet, places));
  const balancer = run(t, 'haproxy', ['-f', file]);
  await untilListening(port, balancer);
  await balancer.until(/redis2 is DOWN/);
  return { url: `redis://127.0.0.1:${port}`, primary, replica, balancer };
}
