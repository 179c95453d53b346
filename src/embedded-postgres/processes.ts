import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import type { Account } from './account.ts';

/**
 * The whole environment of the programs of Postgres. It excludes `PGPORT`, `PGOPTIONS` and the like of the caller. The
 * messages must be English, because failures are recognized by their text.
 */
export const programEnvironment = { LC_ALL: 'C', TZ: 'UTC' };

export interface Finished {
  /** Null if a signal ended it, or it could not be started. */
  code: number | null;
  /** Its stdout and stderr, or why it could not be started. */
  output: string;
}

/** Runs a program to its end, as `account` if there is one. Never rejects. */
export function runToEnd(
  program: string,
  args: readonly string[],
  account: Account | undefined,
  input = '',
): Promise<Finished> {
  return new Promise((resolve) => {
    // A working folder that is accessible to every account.
    const child = spawn(program, args, { ...identityOf(account), cwd: '/', env: programEnvironment, stdio: 'pipe' });
    let output = '';
    const collect = (chunk: Buffer) => {
      output += chunk.toString();
    };
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    child.once('error', (error) => resolve({ code: null, output: error.message }));
    child.once('close', (code) => resolve({ code, output: output.trim() }));
    child.stdin.on('error', () => undefined);
    child.stdin.end(input);
  });
}

/** Options of `spawn` for the account of Postgres; none if it is this process's own. */
export function identityOf(account: Account | undefined): { uid?: number; gid?: number } {
  return account === undefined ? {} : { uid: account.uid, gid: account.gid };
}

export interface LiveProcess {
  parent: number;
  /** Program and arguments, joined by spaces. */
  command: string;
}

/** Undefined if there is no such process. A zombie counts as ended: it only waits for its parent. */
export async function findProcess(pid: number): Promise<LiveProcess | undefined> {
  return process.platform === 'linux' ? findOnLinux(pid) : findWithPs(pid);
}

async function findOnLinux(pid: number): Promise<LiveProcess | undefined> {
  try {
    const status = await readFile(`/proc/${pid}/stat`, 'utf8');
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8');
    // The second field is the program's name in parentheses, which may itself contain spaces and parentheses.
    const [state, parent] = status.slice(status.lastIndexOf(')') + 2).split(' ');
    if (state === 'Z' || state === 'X') return undefined;
    return { parent: Number(parent), command: command.replaceAll('\0', ' ').trim() };
  } catch {
    return undefined;
  }
}

async function findWithPs(pid: number): Promise<LiveProcess | undefined> {
  const { code, output } = await runToEnd(
    '/bin/ps',
    ['-ww', '-o', 'stat=,ppid=,command=', '-p', String(pid)],
    undefined,
  );
  const [, state, parent, command] = /^(\S+)\s+(\d+)\s+(.*)$/.exec(output) ?? [];
  if (code !== 0 || state === undefined || state.startsWith('Z')) return undefined;
  return { parent: Number(parent), command: command ?? '' };
}
