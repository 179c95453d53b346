import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { connect } from 'node:net';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { requireDocumented } from './document.ts';

/** What ends what it started: a test, or the run of a bench. */
export interface Scope {
  /** Adds work for the end. The last one added runs first. */
  teardown(work: () => unknown): void;
}

export interface RunningProcess {
  child: ChildProcess;
  /** Everything that it has written so far to stdout and stderr. */
  output(): string;
  stdout(): string;
  /** Resolves with the match in the output. Fails if the process ends first or after a timeout, 30 s by default. */
  until(pattern: RegExp, withinMs?: number): Promise<RegExpExecArray>;
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
}

interface Options {
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  uid?: number;
  gid?: number;
  /** In its own process group, which ends with the test. */
  group?: boolean;
  /** The value of `ulimit -n`. */
  descriptors?: number;
}

const root = process.cwd();
const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;

/** Only what a program needs to run, so that no setting of the tests or the machine affects it. */
const plainEnvironment = { PATH: process.env['PATH'], HOME: process.env['HOME'], TMPDIR: process.env['TMPDIR'] };

/** The path of one of our files as `test/run.ts` compiled it, such as `src/server.ts`. */
export function compiled(file: string): string {
  return path.join(root, '.test-build', file.replace(/ts$/, 'js'));
}

/** Runs one of our entries, such as `server.ts` or `cli/latchkey.ts`, until the test ends. */
export function runEntry(t: Scope, entry: string, args: string[] = [], options: Options = {}): RunningProcess {
  return runCompiled(t, `src/${entry}`, args, options);
}

/** Runs one of our compiled files as a process. */
export function runCompiled(t: Scope, file: string, args: string[] = [], options: Options = {}): RunningProcess {
  return run(t, process.execPath, [compiled(file), ...args], options);
}

/** Runs a TypeScript file that is not compiled with ours as a process. */
export function runScript(t: Scope, file: string, args: string[] = [], options: Options = {}): RunningProcess {
  return run(t, process.execPath, [`--import=${tsx}`, file, ...args], options);
}

export function run(t: Scope, program: string, args: string[], options: Options = {}) {
  const { env = {}, cwd = root, descriptors, group = false, ...identity } = options;
  const command = descriptors === undefined ? [] : ['sh', '-c', `ulimit -n ${descriptors} && exec "$@"`, 'sh'];
  const [first = program, ...others] = [...command, program, ...args];
  const child = spawn(first, others, { cwd, env: { ...plainEnvironment, ...env }, detached: group, ...identity });
  const kill = (signal: NodeJS.Signals) => (group ? process.kill(-(child.pid ?? 0), signal) : child.kill(signal));
  const written = { stdout: '', stderr: '' };
  child.stdout.on('data', (chunk: Buffer) => {
    written.stdout += chunk.toString();
  });
  child.stderr.on('data', (chunk: Buffer) => {
    written.stderr += chunk.toString();
  });
  const exited = once(child, 'close').then(([code, signal]) => ({ code, signal }));
  let hasEnded = false;
  void exited.then(() => {
    hasEnded = true;
  });
  t.teardown(async () => {
    if (!hasEnded) kill('SIGTERM');
    await Promise.race([exited, delay(12_000, undefined, { ref: false })]);
    if (!hasEnded) kill('SIGKILL');
  });
  const output = () => written.stdout + written.stderr;
  return {
    child,
    output,
    stdout: () => written.stdout,
    exited,
    async until(pattern: RegExp, withinMs = 30_000) {
      for (const deadline = Date.now() + withinMs; Date.now() < deadline; await delay(20)) {
        const match = pattern.exec(output());
        if (match !== null) return match;
        if (hasEnded) break;
      }
      throw new Error(`${pattern} is not in the output of the process:\n${output()}`);
    },
  } satisfies RunningProcess;
}

/** Polls until `check` returns a truthy value, with a limit. */
export async function eventually<Found>(
  check: () => Promise<Found | undefined | false>,
  withinMs = 20_000,
): Promise<Found> {
  for (const deadline = Date.now() + withinMs; Date.now() < deadline; await delay(50)) {
    const found = await check();
    if (found !== undefined && found !== false) return found;
  }
  throw new Error(`it did not happen within ${withinMs} ms: ${check.toString()}`);
}

/** Waits until a process accepts connections at a port. */
export async function untilListening(port: number, process: RunningProcess): Promise<void> {
  await eventually(async () => {
    if (process.child.exitCode !== null) throw new Error(`the process has ended:\n${process.output()}`);
    const socket = connect(port, '127.0.0.1');
    const isOpen = await once(socket, 'connect').then(
      () => true,
      () => false,
    );
    socket.destroy();
    return isOpen;
  }, 30_000);
}

/** Calls a service that listens on a real port. */
export async function request(
  url: string,
  { method = 'GET', token, body }: { method?: string; token?: string; body?: unknown } = {},
) {
  const response = await fetch(url, {
    method,
    headers: {
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const { status, headers } = response;
  const text = await response.text();
  requireDocumented({ method, url, status, contentType: headers.get('content-type') ?? undefined, text });
  // biome-ignore lint/suspicious/noExplicitAny: a reply's members are what the tests are about to assert
  return { status, headers, body: JSON.parse(text) as any };
}
