import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, rm, statfs } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { parseArgs } from 'node:util';
import pLimit from 'p-limit';
import { startEmbeddedPostgres } from '../src/embedded-postgres/start.ts';
import { clusterVariable, makeTestRoles, type TestCluster } from './support/cluster.ts';
import { addDatabase, migrateAs } from './support/database.ts';
import { compiled } from './support/process.ts';
import { type Counts, countAsserts } from './support/tap-counts.ts';

// Runs the tests on one Postgres: the one of TEST_DATABASE_URL (a superuser's), otherwise an embedded one of its own.
// `npm test -- test/keys.test.ts` runs one file, `npm test -- --jobs=1` one file after the other.

const fileTimeoutMs = 900_000;
const testTimeoutSeconds = 300;

const { values: options, positionals: named } = parseArgs({
  allowPositionals: true,
  options: { jobs: { type: 'string', default: String(2 * availableParallelism()) } },
});
const missing = named.filter((file) => !existsSync(file));
if (missing.length > 0) {
  process.stderr.write(`There is no such file: ${missing.join(', ')}\n0 passed, ${missing.length} failed\n`);
  process.exit(1);
}
const found = await readdir('test');
const files =
  named.length > 0 ? named : found.filter((name) => name.endsWith('.test.ts')).map((name) => `test/${name}`);

compile();
const scratch = await mkdtemp(path.join(tmpdir(), 'latchkey-test-'));
const dataDirectory = await mkdtemp(path.join(await fastestFolder(), 'latchkey-test-'));
const embedded =
  process.env['TEST_DATABASE_URL'] === undefined
    ? await startEmbeddedPostgres({
        dataDirectory,
        copiesDirectory: path.join(scratch, 'programs'),
        port: 0,
        durable: false,
      })
    : undefined;
const roles = await makeTestRoles(process.env['TEST_DATABASE_URL'] ?? embedded?.urls.superuser ?? '');
const template = await addDatabase(roles.urls, '');

const interrupted = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => interrupted.abort());

let results: Counts[] = [];
try {
  await migrateAs(template.urls);
  const limit = pLimit(Number(options.jobs));
  const cluster: TestCluster = { urls: roles.urls, template: template.name };
  results = await Promise.all(files.map((file) => limit(() => runFile(file, cluster))));
} finally {
  // An embedded Postgres goes as a whole. Elsewhere a database of a test that was killed would keep its roles.
  if (embedded === undefined) {
    await template.drop();
    await roles
      .drop()
      .catch((error: unknown) => process.stderr.write(`Roles of this run are left: ${String(error)}\n`));
  } else await embedded.stop();
  await rm(scratch, { recursive: true, force: true });
  await rm(dataDirectory, { recursive: true, force: true });
}
process.exit(summarize(results) ? 0 : 1);

/**
 * Where the test databases are stored: in memory if there is room. The tests create and drop hundreds of databases of 300
 * files each, and ext4 creates files slowly while many were deleted a moment ago.
 */
async function fastestFolder(): Promise<string> {
  const { bavail, bsize } = await statfs('/dev/shm').catch(() => ({ bavail: 0, bsize: 0 }));
  return bavail * bsize >= 4 * 1024 ** 3 ? '/dev/shm' : tmpdir();
}

/** Each test file and what it starts run without a transpiler. The types are checked by `npm run typecheck`. */
function compile(): void {
  const compiler = path.join('node_modules', 'typescript', 'bin', 'tsc');
  const { status } = spawnSync(process.execPath, [compiler, '-p', 'tsconfig.test.json'], { stdio: 'inherit' });
  if (status !== 0) process.exit(1);
}

/** Runs a test file as a process of its own and prints how it went. */
async function runFile(file: string, cluster: TestCluster): Promise<Counts> {
  const startedAtMs = performance.now();
  const child = spawn(process.execPath, ['--enable-source-maps', compiled(file)], {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: fileTimeoutMs,
    signal: interrupted.signal,
    env: { ...process.env, TAP_TIMEOUT: String(testTimeoutSeconds), [clusterVariable]: JSON.stringify(cluster) },
  });
  child.on('error', () => undefined);
  const [tap, errors, [code, signal]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>,
  ]);
  const counts = countAsserts(file, tap);
  if (code !== 0 && counts.failures.length === 0) {
    counts.failures.push({ path: `${file} > ended by ${signal ?? `exit code ${code}`}`, details: tap.slice(-2_000) });
  }
  const seconds = ((performance.now() - startedAtMs) / 1_000).toFixed(1);
  process.stdout.write(`${counts.failures.length === 0 ? 'ok    ' : 'FAILED'} ${seconds.padStart(6)} s  ${file}\n`);
  if (counts.failures.length > 0) process.stdout.write(errors);
  for (const { path: failed, details } of counts.failures) process.stdout.write(`failed: ${failed}\n${details}\n`);
  return counts;
}

/** Prints the counts of all files, at the end once more what failed. @returns whether everything passed */
function summarize(results: Counts[]): boolean {
  const failures = results.flatMap((counts) => counts.failures);
  const skipped = results.flatMap((counts) => counts.skipped);
  const passed = results.reduce((sum, counts) => sum + counts.passed, 0);
  for (const { path: failed } of failures) process.stdout.write(`failed: ${failed}\n`);
  for (const name of skipped) process.stdout.write(`skipped: ${name}\n`);
  const andSkipped = skipped.length === 0 ? '' : `, ${skipped.length} skipped`;
  process.stdout.write(`\n${passed} passed, ${failures.length} failed${andSkipped}\n`);
  return failures.length === 0 && passed > 0;
}
