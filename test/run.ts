import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, rm, statfs } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
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
/** How long a worker may take to end after its last file: a handle that a test left open keeps it running. */
const exitTimeoutMs = 30_000;
/** They measure the memory of their process. */
const alone = ['client-connections', 'flood', 'key-cache', 'record-memory', 'unreported'];

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
  const [measuring, shared] = partition(files, (file) => alone.includes(path.basename(file, '.test.ts')));
  const queues = [...measuring.map((file) => [file]), ...Array.from({ length: Number(options.jobs) }, () => shared)];
  results = (await Promise.all(queues.map((queue) => limit(() => runWorker(queue, cluster))))).flat();
} finally {
  // The embedded Postgres is deleted as a whole. On another server, the database of a killed test would keep the roles.
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

function partition<Item>(items: readonly Item[], test: (item: Item) => boolean): [Item[], Item[]] {
  return [items.filter(test), items.filter((item) => !test(item))];
}

/**
 * Where the test databases are stored: in memory if there is room, because ext4 is slow at creating files while many
 * were just deleted.
 */
async function fastestFolder(): Promise<string> {
  const { bavail, bsize } = await statfs('/dev/shm').catch(() => ({ bavail: 0, bsize: 0 }));
  return bavail * bsize >= 4 * 1024 ** 3 ? '/dev/shm' : tmpdir();
}

/** Test files and the programs they start run without a transpiler. `npm run typecheck` checks the types. */
function compile(): void {
  const compiler = path.join('node_modules', 'typescript', 'bin', 'tsc');
  const { status } = spawnSync(process.execPath, [compiler, '-p', 'tsconfig.test.json'], { stdio: 'inherit' });
  if (status !== 0) process.exit(1);
}

/** Runs the files of the queue, one after the other, in a process of its own. Another one continues if it ends early. */
async function runWorker(queue: string[], cluster: TestCluster): Promise<Counts[]> {
  const results: Counts[] = [];
  while (queue.length > 0 && !interrupted.signal.aborted) results.push(...(await runUntilExit(queue, cluster)));
  return results;
}

async function runUntilExit(queue: string[], cluster: TestCluster): Promise<Counts[]> {
  const worker = spawn(process.execPath, ['--enable-source-maps', compiled('test/worker.ts')], {
    stdio: ['pipe', 'pipe', 'pipe'],
    signal: interrupted.signal,
    env: { ...process.env, [clusterVariable]: JSON.stringify(cluster) },
  });
  worker.on('error', () => undefined);
  // The exit code reports a worker that has ended.
  worker.stdin.on('error', () => undefined);
  const exited = once(worker, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
  const results: Counts[] = [];
  let running = startNext();
  worker.stderr.on('data', (chunk) => {
    running.errors += chunk;
  });

  function startNext() {
    const file = queue.shift();
    if (file === undefined) worker.stdin.end();
    else worker.stdin.write(`${file}\n`);
    const timeout = setTimeout(() => worker.kill('SIGKILL'), file === undefined ? exitTimeoutMs : fileTimeoutMs);
    return { file, timeout, startedAtMs: performance.now(), lines: [] as string[], errors: '' };
  }

  function finish(how?: string): void {
    const { file = 'the end of a worker', timeout, startedAtMs, lines, errors } = running;
    clearTimeout(timeout);
    const counts = countAsserts(file, lines.join('\n'));
    if (how !== undefined && counts.failures.length === 0) {
      counts.failures.push({ path: `${file} > ${how}`, details: lines.slice(-40).join('\n') });
    }
    const seconds = ((performance.now() - startedAtMs) / 1_000).toFixed(1);
    process.stdout.write(`${counts.failures.length === 0 ? 'ok    ' : 'FAILED'} ${seconds.padStart(6)} s  ${file}\n`);
    if (counts.failures.length > 0) process.stdout.write(errors);
    for (const { path: failed, details } of counts.failures) process.stdout.write(`failed: ${failed}\n${details}\n`);
    results.push(counts);
  }

  for await (const line of createInterface(worker.stdout)) {
    // The worker's own subtest, and the file's.
    if (/^( {4})?# Subtest: /.test(line)) continue;
    const result = /^ {4}(not )?ok \d+ - (.*?)(?: # time=.*)?$/.exec(line);
    if (running.file === undefined || result?.[2] !== running.file) running.lines.push(line);
    else {
      finish(result[1] === undefined ? undefined : 'it failed');
      running = startNext();
    }
  }
  const [code, signal] = await exited;
  clearTimeout(running.timeout);
  if (code !== 0 && (running.file !== undefined || results.every(({ failures }) => failures.length === 0))) {
    finish(`ended by ${signal ?? `exit code ${code}`}`);
  }
  return results;
}

/** Prints the counts of all files, then the failures again. @returns whether everything passed */
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
