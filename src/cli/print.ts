/** A line for the person or script that called. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
