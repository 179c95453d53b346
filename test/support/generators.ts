import { createHash } from 'node:crypto';
import { cp, mkdir, mkdtemp, readFile, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { exists } from '../../src/lib/durable-file.ts';
import { run } from './process.ts';

const source = path.resolve('test/generators');

/** What npm prints when it reaches no registry. */
const unreachable = /ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|ENOTCACHED|network/;

/**
 * Installs the generators of test/generators once into a cache, because they are too large for every `npm ci`. @returns
 * the folder with their `node_modules`, or why there is none
 */
export async function installGenerators(t: Test): Promise<{ folder: string } | { missing: string }> {
  const lock = await readFile(path.join(source, 'package-lock.json'));
  const version = createHash('sha256').update(lock).digest('hex').slice(0, 16);
  const cache = path.join(process.env['XDG_CACHE_HOME'] ?? path.join(homedir(), '.cache'), 'latchkey');
  const folder = path.join(cache, `generators-${version}`);
  if (await exists(folder)) return { folder };

  await mkdir(cache, { recursive: true });
  const temporary = await mkdtemp(`${folder}-`);
  for (const file of ['package.json', 'package-lock.json'])
    await cp(path.join(source, file), path.join(temporary, file));
  const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--fetch-retries=1'];
  const installing = run(t, 'npm', ['ci', ...flags], { cwd: temporary, env: process.env });
  const { code } = await installing.exited;
  if (code === 0) {
    // Another test run may have been faster.
    await rename(temporary, folder).catch(() => rm(temporary, { recursive: true }));
    return { folder };
  }
  await rm(temporary, { recursive: true });
  if (unreachable.test(installing.output())) return { missing: 'npm cannot reach a registry for test/generators' };
  throw new Error(`npm ci failed in test/generators:\n${installing.output()}`);
}
