import { Redis } from 'ioredis';
import type { Test } from 'tap';
import { freePort } from './ports.ts';
import { eventually, type RunningProcess, run } from './process.ts';

export interface RunningCluster {
  url: string;
  nodes: Array<{ port: number; process: RunningProcess; client: Redis }>;
}

const slots = 16_384;

/** A real Redis Cluster with three primaries, stopped when the test ends. */
export async function startRedisCluster(t: Test): Promise<RunningCluster> {
  const folders = t.testdir({ node0: {}, node1: {}, node2: {} });
  const nodes: RunningCluster['nodes'] = [];
  const busPorts: number[] = [];
  for (const index of [0, 1, 2]) {
    const port = await freePort();
    const busPort = await freePort();
    busPorts.push(busPort);
    const settings = {
      port,
      'cluster-port': busPort,
      bind: '127.0.0.1',
      save: '',
      appendonly: 'no',
      dir: `${folders}/node${index}`,
      'cluster-enabled': 'yes',
      'cluster-node-timeout': 2_000,
    };
    const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
    const process = run(t, 'redis-server', args);
    await process.until(/Ready to accept connections/);
    const client = new Redis(port, '127.0.0.1', { maxRetriesPerRequest: 0, retryStrategy: () => 200 });
    client.on('error', () => undefined);
    t.teardown(() => client.disconnect());
    const first = Math.floor((slots * index) / 3);
    const last = Math.floor((slots * (index + 1)) / 3) - 1;
    await client.call('CLUSTER', 'ADDSLOTSRANGE', first, last);
    nodes.push({ port, process, client });
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
