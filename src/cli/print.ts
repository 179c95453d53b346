import { isReaderGone } from '../lib/gone-reader.ts';

/** A line for the person or script that called. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** A reader that has read enough, such as `head`, or a closed terminal does not end the command or change its exit code. */
export function ignoreGoneReader(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (!isReaderGone(error)) throw error;
  });
}

/** A line for what somebody should know who counts on more. */
export function warning(what: string): void {
  print(`warning ${what}`);
}

/** A line for what somebody has to see to. The command goes on, and ends with exit code 1. */
export function wrong(what: string): void {
  print(`wrong   ${what}`);
  process.exitCode = 1;
}

/** So many of something, as one says it: `1 key`, `2 keys`. */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}
