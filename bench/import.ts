import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { dbAddPartners, dbQuery } from '../test/support/database.ts';
import { startTestbed } from './testbed.ts';

// `npm run bench:import [keys]` imports 100,000 keys with `latchkey import`: a run that is killed in the middle, a run
// that completes it, and a run that finds everything there. Prints times and the largest memory of each process.

const keys = Number(process.argv[2] ?? 100_000);
const runTimeoutMs = 30 * 60_000;
const maximumMemoryBytes = 400 * 2 ** 20;
const keysOfPartner = 4;
const log = (message: string) => process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${message}\n`);

const testbed = await startTestbed();
const folder = await mkdtemp(path.join(tmpdir(), 'latchkey-import-'));
let isMet = true;
const check = (what: string, met: boolean) => {
  isMet &&= met;
  log(`${met ? 'met' : 'missed'}: ${what}`);
};
try {
  const { organizationId } = testbed.bootstrapped;
  await dbAddPartners(testbed.urls.superuser, organizationId, keys / keysOfPartner);
  const file = path.join(folder, 'keys.ndjson');
  const lineOf = (index: number) => {
    const permission = index % 2 === 0 ? 'read' : 'write';
    const plaintext = `acme_live_${randomBytes(18).toString('base64url')}`;
    const partnerExternalId = `customer-${Math.floor(index / keysOfPartner)}`;
    return `${JSON.stringify({ partnerExternalId, permission, plaintext, name: 'Imported', metadata: { plan: 'gold' } })}\n`;
  };
  await writeFile(file, Array.from({ length: keys }, (_, index) => lineOf(index)).join(''));
  const countOf = async (sql: string) => Number((await dbQuery(testbed.urls.superuser, sql))[0]?.['count']);
  const importedKeys = () => countOf("select count(*) from api_keys where origin = 'imported'");
  const events = () => countOf("select count(*) from history where action = 'key.imported'");
  const run = (killAt?: number) => importFile(file, organizationId, killAt);

  const killed = await run(50);
  const afterKill = await importedKeys();
  report('killed at 50 %', killed, afterKill);
  const completed = await run();
  const total = await importedKeys();
  report('completed', completed, total - afterKill);
  const again = await run();
  report('nothing to do', again, keys);
  log(again.output.trim());
  check(`${keys} keys are there once, and so are their events`, total === keys && (await events()) === keys);
  check('the second run changes nothing', (await importedKeys()) === keys && (await events()) === keys);
  const memoryBytes = Math.max(killed.memoryBytes, completed.memoryBytes, again.memoryBytes);
  check(`memory stays below ${maximumMemoryBytes / 2 ** 20} MiB`, memoryBytes < maximumMemoryBytes);
} finally {
  await rm(folder, { recursive: true, force: true });
  await testbed.stop();
}
process.exit(isMet ? 0 : 1);

interface ImportRun {
  seconds: number;
  memoryBytes: number;
  output: string;
}

/** @param killAt kills the process when so many per cent are shown */
async function importFile(file: string, organizationId: string, killAt?: number): Promise<ImportRun> {
  const args = ['dist/src/cli/latchkey.js', 'import', file, '--organization', organizationId];
  const startedAtMs = performance.now();
  const child = spawn(process.execPath, args, {
    env: { ...process.env, ...testbed.env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: runTimeoutMs,
  });
  let output = '';
  let memoryBytes = 0;
  const sampling = setInterval(() => {
    memoryBytes = Math.max(memoryBytes, largestMemoryOf(child));
  }, 100);
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString();
  });
  child.stderr.on('data', (chunk: Buffer) => {
    const [, done, of] = /(\d+) of (\d+)\n$/.exec(chunk.toString()) ?? [];
    if (killAt !== undefined && (100 * Number(done)) / Number(of) >= killAt) child.kill('SIGKILL');
  });
  const [code] = await once(child, 'close');
  clearInterval(sampling);
  if (killAt === undefined && code !== 0) throw new Error(`the import ended with ${code}:\n${output}`);
  return { seconds: (performance.now() - startedAtMs) / 1000, memoryBytes, output };
}

function largestMemoryOf({ pid }: ChildProcess): number {
  try {
    const [, kilobytes] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
    return Number(kilobytes ?? 0) * 1024;
  } catch {
    return 0;
  }
}

function report(what: string, { seconds, memoryBytes }: ImportRun, handled: number): void {
  const rate = Math.round(handled / seconds);
  const memory = (memoryBytes / 2 ** 20).toFixed(0);
  log(`${what}: ${handled} keys in ${seconds.toFixed(1)} s, ${rate} per second, at most ${memory} MiB`);
}
