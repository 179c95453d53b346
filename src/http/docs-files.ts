import { readdir, readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import type { onRequestHookHandler } from 'fastify';

const types: Record<string, string> = {
  '.css': 'text/css; charset=utf-8',
  '.html': 'text/html; charset=utf-8',
  '.js': 'application/javascript; charset=utf-8',
  '.json': 'application/json; charset=utf-8',
  '.png': 'image/png',
  '.svg': 'image/svg+xml',
};

const folder = path.join(path.dirname(createRequire(import.meta.url).resolve('@fastify/swagger-ui')), 'static');

/** Files that the library generates itself. */
const generatedByLibrary = new Set(['index.html', 'swagger-initializer.js']);

/**
 * Serves the files of /docs from memory. The library would open a file per reply, so many clients that do not read could
 * exhaust the file descriptors of the process.
 * @param underPath the URL path of the files, such as `/docs/static/`
 */
export async function serveDocsFiles(underPath: string): Promise<onRequestHookHandler> {
  const names = (await readdir(folder)).filter((name) => !generatedByLibrary.has(name));
  const files = new Map<string, { type: string; bytes: Buffer }>();
  for (const name of names) {
    const type = types[path.extname(name)] ?? 'application/octet-stream';
    files.set(`${underPath}${name}`, { type, bytes: await readFile(path.join(folder, name)) });
  }
  return (request, reply, done) => {
    const file = files.get(request.url.split('?', 1)[0] ?? '');
    if (file === undefined) done();
    else reply.type(file.type).send(file.bytes);
  };
}
