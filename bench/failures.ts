import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { parseArgs } from 'node:util';
import type { Scope } from '../test/support/process.ts';
import { type Failure, failures, patroniFailures } from './failures/failures.ts';
import { type Parts, type PatroniParts, startParts, startPatroniParts } from './failures/parts.ts';
import { type FailureRunResult, runFailures, toTables } from './failures/run.ts';
import { describeMachine } from './report.ts';

// `npm run bench:failures` lets every part of an installation with four replicas fail under load, on 127.0.0.1 with Debian's
// postgresql, pgbouncer, redis-server and haproxy. Exits with 1 if a promise is broken. `-- --only=pooler,redis` runs
// some failures, and `-- --asynchronous` does not make commits wait for the standby, so acknowledged changes are lost.
// `-- --patroni` runs two replicas with Postgres behind Patroni instead, and needs Debian's patroni and etcd-server too.

const root = path.dirname(import.meta.dirname);
const { values: options } = parseArgs({
  options: { only: { type: 'string' }, asynchronous: { type: 'boolean' }, patroni: { type: 'boolean' } },
});
const startedAtMs = performance.now();
const log = (line: string) =>
  process.stdout.write(`${((performance.now() - startedAtMs) / 1_000).toFixed(1).padStart(6)} s  ${line}\n`);

const { status } = spawnSync(process.execPath, ['src/prestart.mjs'], { cwd: root, stdio: 'inherit' });
if (status !== 0) process.exit(1);
const { node, cpu, cores } = describeMachine();
process.stdout.write(`${new Date().toISOString().slice(0, 10)}, Node ${node}, ${cpu}, ${cores} cores\n`);

/** The failures of `--only`, otherwise all. */
function chosen<Known>(known: Record<string, Known>): Known[] {
  const names = options.only?.split(',') ?? Object.keys(known);
  return names.map((name) => {
    const failure = known[name];
    if (failure === undefined) throw new Error(`--only knows ${Object.keys(known).join(', ')}, but not ${name}`);
    return failure;
  });
}

const endings: Array<() => unknown> = [];
const scope: Scope = { teardown: (work) => void endings.push(work) };
const build = path.join(root, 'dist');
const runOptions = {
  load: { verifiers: 4, writers: 4, followers: 4, pauseMs: { verifiers: 20, writers: 250 } },
  outageMs: 5_000,
  settleMs: 5_000,
  recoveryLimitMs: 10_000,
  log,
};

async function runPair(): Promise<FailureRunResult> {
  const isSynchronous = options.asynchronous !== true;
  const parts = await startParts(scope, { build, replicas: 4, staleSeconds: 10, isSynchronous });
  log('started four replicas, HAProxy, PgBouncer, three Redis servers, a primary and a standby');
  return runFailures(scope, parts, chosen<Failure<Parts>>(failures), runOptions);
}

async function runPatroni(): Promise<FailureRunResult> {
  const parts = await startPatroniParts(scope, { build, replicas: 2, staleSeconds: 30 });
  log('started two replicas, two HAProxies, three members of Patroni and three of etcd');
  return runFailures(scope, parts, chosen<Failure<PatroniParts>>(patroniFailures), { ...runOptions, outageMs: 0 });
}

let exitCode = 1;
try {
  const result = await (options.patroni === true ? runPatroni() : runPair());
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
