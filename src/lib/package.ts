import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

/** The package's own folder, whether this runs from the sources or from what was built. */
export function packageDirectory(): string {
  let directory = path.dirname(fileURLToPath(import.meta.url));
  while (!existsSync(path.join(directory, 'package.json'))) directory = path.dirname(directory);
  return directory;
}

export function packageVersion(): string {
  const text = readFileSync(path.join(packageDirectory(), 'package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}
