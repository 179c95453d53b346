import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { freePort } from './ports.ts';
import { type RunningProcess, run, type Scope, untilListening } from './process.ts';
import { fill, snippetsOf } from './snippets.ts';

/** HAProxy in front of replicas, as docs/scaling.md configures it. */
export interface Balancer {
  url: string;
  process: RunningProcess;
}

const mostReplicas = 4;

export async function startBalancer(t: Scope, replicaPorts: readonly number[]): Promise<Balancer> {
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-balancer-'));
  t.teardown(() => rm(directory, { recursive: true, force: true, maxRetries: 10 }));
  const [snippet] = await snippetsOf('docs/scaling.md', 'Replicas', 'haproxy');
  const port = await freePort();
  const servers = Array.from({ length: mostReplicas }, (_, index) => {
    const documented = `    server replica${index + 1} 10.0.0.1${index + 1}:8080\n`;
    const replicaPort = replicaPorts[index];
    return [documented, replicaPort === undefined ? '' : `    server replica${index + 1} 127.0.0.1:${replicaPort}\n`];
  });
  const settings = fill(snippet, { 'bind :8080': `bind 127.0.0.1:${port}`, ...Object.fromEntries(servers) });
  const file = path.join(directory, 'haproxy.cfg');
  await writeFile(file, settings);
  // `-W` runs a master, which reloads on SIGUSR2.
  const balancer = run(t, 'haproxy', ['-W', '-f', file]);
  await untilListening(port, balancer);
  return { url: `http://127.0.0.1:${port}`, process: balancer };
}
