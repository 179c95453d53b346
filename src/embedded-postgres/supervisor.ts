import { spawn } from 'node:child_process';
import { openSync } from 'node:fs';
import { programEnvironment } from './processes.ts';

/**
 * A process between Latchkey and its Postgres. It ends Postgres when Latchkey asks for it, and also when Latchkey is
 * killed: the channel to it closes with the process at its other end, whatever ended it.
 */

export interface Supervised {
  program: string;
  args: string[];
  identity: { uid?: number; gid?: number };
  logFile: string;
}

/** A fast shutdown; past the first wait an immediate one, past the second the kernel's. */
const stopSignals: Array<[signal: NodeJS.Signals, afterMs: number]> = [
  ['SIGINT', 0],
  ['SIGQUIT', 7_000],
  ['SIGKILL', 12_000],
];

// The last argument; those before it only show in a list of processes whose Postgres this is.
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
// Whoever stops a whole service signals all its processes at once; Latchkey still needs its database to end well.
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => undefined);
