import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { startEmbeddedPostgres } from '../src/db/embedded/start.ts';
import { clusterVariable, makeTestRoles } from './support/cluster.ts';
import { countAsserts } from './support/tap-counts.ts';

// Runs the tests on one Postgres: the one of TEST_DATABASE_URL (a superuser's), else an embedded one of its own.
// Arguments go to tap: `npm test -- test/keys.test.ts`.

// tap runs the files that it finds and says nothing of the others.
const missing = process.argv.slice(2).filter(isMissingFile);
if (missing.length > 0) {
  process.stderr.write(`There is no such file: ${missing.join(', ')}\n0 passed, ${missing.length} failed\n`);
  process.exit(1);
}

const scratch = await mkdtemp(path.join(tmpdir(), 'latchkey-test-'));
const embedded =
  process.env['TEST_DATABASE_URL'] === undefined
    ? await startEmbeddedPostgres({
        dataDirectory: scratch,
        copiesDirectory: path.join(scratch, 'programs'),
        port: 0,
        durable: false,
      })
    : undefined;
const roles = await makeTestRoles(process.env['TEST_DATABASE_URL'] ?? embedded?.urls.superuser ?? '');

let exitCode = 1;
try {
  exitCode = await runTap();
} finally {
  await roles.drop();
  await embedded?.stop();
  await rm(scratch, { recursive: true, force: true });
}
process.exit(exitCode);

/** Options and patterns are left to tap. */
function isMissingFile(argument: string): boolean {
  const isFile = !argument.startsWith('-') && !/[*?[{]/.test(argument) && /\/|\.[cm]?[jt]sx?$/.test(argument);
  return isFile && !existsSync(argument);
}

async function runTap(): Promise<number> {
  const tap = path.join(path.dirname(createRequire(import.meta.url).resolve('tap/package.json')), 'dist/esm/run.mjs');
  await buildPlugins(tap);
  const output = path.join(scratch, 'output.tap');
  const args = [tap, 'run', '--reporter=min', `--output-file=${output}`, ...process.argv.slice(2)];
  const child = spawn(process.execPath, args, {
    stdio: 'inherit',
    env: { ...process.env, [clusterVariable]: JSON.stringify(roles.urls) },
  });
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => child.kill(signal));
  const [code] = (await once(child, 'exit')) as [number | null];
  const counts = countAsserts(await readFile(output, 'utf8').catch(() => ''));
  // The reporter shows failures only on a terminal.
  for (const failure of counts.failures) process.stdout.write(`\nfailed: ${failure}`);
  // tap itself may fail, such as by a file that it cannot find.
  const failed = code === 0 ? counts.failures.length : Math.max(1, counts.failures.length);
  for (const skipped of counts.skipped) process.stdout.write(`\nskipped: ${skipped}`);
  const andSkipped = counts.skipped.length === 0 ? '' : `, ${counts.skipped.length} skipped`;
  process.stdout.write(`\n${counts.passed} passed, ${failed} failed${andSkipped}\n`);
  return failed === 0 && counts.passed > 0 ? 0 : 1;
}

/**
 * tap builds its own class from the plugins that `.taprc` lists. It would do so by itself, but the run that does it
 * still uses the plugins from before, TypeScript's among them.
 */
async function buildPlugins(tap: string): Promise<void> {
  const marker = path.join('node_modules', '.latchkey-tap-built');
  if (existsSync(marker)) return;
  const [code] = await once(spawn(process.execPath, [tap, 'build'], { stdio: 'inherit' }), 'exit');
  if (code !== 0) throw new Error('`tap build` failed');
  await writeFile(marker, '');
}
