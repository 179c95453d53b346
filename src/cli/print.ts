/** A line for the person or script that called. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** A line for what somebody has to see to. The command goes on, and ends with exit code 1. */
export function wrong(what: string): void {
  print(`wrong   ${what}`);
  process.exitCode = 1;
}
