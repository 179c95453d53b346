import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Redis } from 'ioredis';
import { freePort } from './ports.ts';
import { eventually, type RunningProcess, run, type Scope } from './process.ts';
import { connectTo } from './redis.ts';

interface ClusterNode {
  port: number;
  process: RunningProcess;
  client: Redis;
  /** Starts the server again after its end. It knows its slots, and no counts. */
  restart(): Promise<void>;
}

export interface RunningCluster {
  url: string;
  nodes: ClusterNode[];
}

const slots = 16_384;

/** A real Redis Cluster with three primaries, stopped when the test ends. */
export async function startRedisCluster(t: Scope): Promise<RunningCluster> {
  const nodes: RunningCluster['nodes'] = [];
  const busPorts: number[] = [];
  for (const index of [0, 1, 2]) {
    const port = await freePort();
    const busPort = await freePort();
    busPorts.push(busPort);
    const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-redis-'));
    t.teardown(() => rm(directory, { recursive: true, force: true, maxRetries: 10 }));
    const settings = {
      port,
      'cluster-port': busPort,
      bind: '127.0.0.1',
      save: '',
      appendonly: 'no',
      dir: directory,
      'cluster-enabled': 'yes',
      'cluster-node-timeout': 2_000,
    };
    const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
    const start = async () => {
      const process = run(t, 'redis-server', args);
      await process.until(/Ready to accept connections/);
      return process;
    };
    const process = await start();
    const client = connectTo(t, port);
    const first = Math.floor((slots * index) / 3);
    const last = Math.floor((slots * (index + 1)) / 3) - 1;
    await client.call('CLUSTER', 'ADDSLOTSRANGE', first, last);
    const node: ClusterNode = {
      port,
      process,
      client,
      async restart() {
        node.process = await start();
      },
    };
    nodes.push(node);
  }
  for (const [index, { port }] of nodes.entries()) {
    await nodes[0]?.client.call('CLUSTER', 'MEET', '127.0.0.1', port, busPorts[index] ?? 0);
  }
  await eventually(async () => {
    const infos = await Promise.all(nodes.map(({ client }) => client.call('CLUSTER', 'INFO')));
    return infos.every((info) => /cluster_state:ok/.test(String(info)) && /cluster_known_nodes:3/.test(String(info)));
  });
  return { url: `redis+cluster://${nodes.map(({ port }) => `127.0.0.1:${port}`).join(',')}`, nodes };
}
