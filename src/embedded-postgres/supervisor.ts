import { spawn } from 'node:child_process';
import { openSync } from 'node:fs';
import { programEnvironment } from './processes.ts';

/**
 * A process between Latchkey and its Postgres. It stops Postgres on request, and also when Latchkey is killed: then the
 * channel to it closes.
 */

export interface Supervised {
  program: string;
  args: string[];
  identity: { uid?: number; gid?: number };
  logFile: string;
}

/** A fast shutdown; after the first wait an immediate one, after the second SIGKILL. */
const stopSignals: Array<[signal: NodeJS.Signals, afterMs: number]> = [
  ['SIGINT', 0],
  ['SIGQUIT', 7_000],
  ['SIGKILL', 12_000],
];

// The last argument. The earlier ones only show in a list of processes whose Postgres this is.
const supervised = JSON.parse(process.argv.at(-1) ?? '') as Supervised;

const log = openSync(supervised.logFile, 'w', 0o600);
const postgres = spawn(supervised.program, supervised.args, {
  ...supervised.identity,
  cwd: '/',
  env: programEnvironment,
  stdio: ['ignore', log, log],
});

let stopping = false;
function stop(): void {
  if (stopping) return;
  stopping = true;
  for (const [signal, afterMs] of stopSignals) setTimeout(() => postgres.kill(signal), afterMs);
}

postgres.once('error', () => process.exit(1));
postgres.once('exit', (code) => process.exit(code ?? 1));
process.on('disconnect', stop);
process.on('message', stop);
// Service managers signal all processes at once, but Latchkey needs its database for an orderly shutdown.
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => undefined);
