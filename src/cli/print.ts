import { isReaderGone } from '../lib/gone-reader.ts';

/** Prints a line to standard output. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Ignores a closed standard output, such as of `  head`, so that the command still ends with its own exit code. */
export function ignoreGoneReader(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (!isReaderGone(error)) throw error;
  });
}

/** Prints a finding that does not fail the command. */
export function warning(message: string): void {
  print(`warning ${message}`);
}

/** Prints a finding that must be fixed. The command continues, and ends with exit code 1. */
export function wrong(message: string): void {
  print(`wrong   ${message}`);
  process.exitCode = 1;
}

/** A number with its noun: `1 key`, `2 keys`. */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}
