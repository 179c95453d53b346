import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { type FailureName, failures } from './failures/failures.ts';
import { runFailures, toTables } from './failures/run.ts';
import { describeMachine } from './report.ts';

// `npm run bench:failures` lets every part of an installation with four replicas fail under load, on 127.0.0.1 with Debian's
// postgresql, pgbouncer, redis-server and haproxy. Exits with 1 if a promise is broken. `-- --only=pooler,redis` runs
// some failures, and `-- --asynchronous` does not make commits wait for the standby, so acknowledged changes are lost.

const root = path.dirname(import.meta.dirname);
const { values: options } = parseArgs({ options: { only: { type: 'string' }, asynchronous: { type: 'boolean' } } });
const names = (options.only?.split(',') ?? Object.keys(failures)) as FailureName[];
const startedAtMs = performance.now();
const log = (line: string) =>
  process.stdout.write(`${((performance.now() - startedAtMs) / 1_000).toFixed(1).padStart(6)} s  ${line}\n`);

const { status } = spawnSync(process.execPath, ['src/prestart.mjs'], { cwd: root, stdio: 'inherit' });
if (status !== 0) process.exit(1);
const { node, cpu, cores } = describeMachine();
process.stdout.write(`${new Date().toISOString().slice(0, 10)}, Node ${node}, ${cpu}, ${cores} cores\n`);

const endings: Array<() => unknown> = [];
let exitCode = 1;
try {
  const result = await runFailures(
    { teardown: (work) => void endings.push(work) },
    {
      build: path.join(root, 'dist'),
      replicas: 4,
      isSynchronous: options.asynchronous !== true,
      failures: names,
      load: { verifiers: 4, writers: 4, followers: 4, pauseMs: { verifiers: 20, writers: 250 } },
      outageMs: 5_000,
      settleMs: 5_000,
      recoveryLimitMs: 10_000,
      log,
    },
  );
  const { requests, acknowledged, replays, broken } = result;
  process.stdout.write(`\n${toTables(result)}\n\n`);
  process.stdout.write(`${requests} requests, ${acknowledged} acknowledged changes, ${replays} repeated requests.\n`);
  for (const line of broken) process.stdout.write(`BROKEN  ${line}\n`);
  process.stdout.write(broken.length === 0 ? 'Every promise was kept.\n' : `${broken.length} promises were broken.\n`);
  exitCode = broken.length === 0 ? 0 : 1;
} finally {
  for (const end of endings.reverse()) await end();
}
process.exit(exitCode);
