import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

/** The package's own folder, for the sources and for the build. */
function packageDirectory(): string {
  let directory = path.dirname(fileURLToPath(import.meta.url));
  while (!existsSync(path.join(directory, 'package.json'))) directory = path.dirname(directory);
  return directory;
}

export function packageVersion(): string {
  const text = readFileSync(path.join(packageDirectory(), 'package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

/** The OpenAPI document of a version. `npm run openapi` writes it from the routes, and a test compares the two. */
export function readOpenApi(form: '3.1' | '3.0'): string {
  const name = form === '3.1' ? 'openapi.json' : 'openapi-3.0.json';
  return readFileSync(path.join(packageDirectory(), 'openapi', name), 'utf8');
}
