import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { type Config, readConfig } from '../src/config/config.ts';
import { Secret } from '../src/crypto/secret.ts';
import { connect } from '../src/database/client.ts';
import { verifyChain } from '../src/history/verify.ts';
import type { Job } from '../src/jobs/job.ts';
import { jobs } from '../src/jobs/list.ts';
import { periodMsOf } from '../src/jobs/policy.ts';
import { secondMs } from '../src/lib/durations.ts';
import { dbQuery } from '../test/support/database.ts';
import { readKept, writeKept } from './kept.ts';
import { median } from './sampling.ts';
import { measureIndexing } from './scale/indexing.ts';
import { measureLists, type Report } from './scale/lists.ts';
import { seedWorld, type World } from './scale/seed.ts';
import { type WorldSize, worldSizes } from './scale/sizes.ts';
import { startTestbed, type Testbed } from './testbed.ts';

// `npm run bench:scale -- --size=hundredth` (or tenth, full) measures an installation with years of history and thousands
// of organizations. Exits with 1 if a target is missed. Data is written below TMPDIR: full needs 40 GB.
// With --keep=FOLDER the world stays there, and the next run with the same folder measures it without seeding.

const { values: options } = parseArgs({
  options: { size: { type: 'string', default: 'hundredth' }, keep: { type: 'string' } },
});
const size = worldSizes[options.size];
if (size === undefined) throw new Error(`--size must be one of ${Object.keys(worldSizes).join(', ')}`);

const log = (line: string) => process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${line}\n`);
let missed = 0;

const report: Report = (label, value, unit, limit) => {
  const isMet = value <= (limit?.atMost ?? Number.POSITIVE_INFINITY) && value >= (limit?.atLeast ?? 0);
  if (!isMet) missed += 1;
  const target = limit === undefined ? '' : `target ${limit.atMost ?? limit.atLeast}`;
  log(`${label.padEnd(58)} ${value.toFixed(1).padStart(12)} ${unit.padEnd(4)} ${target}${isMet ? '' : '  MISSED'}`);
};

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedAtMs = performance.now();
  await work();
  return performance.now() - startedAtMs;
}

async function seed({ urls, crypto }: Testbed, config: Config, size: WorldSize): Promise<World> {
  log(`seeding: ${JSON.stringify(size)}`);
  const argon2idHash = await crypto.hasher.hash(new Secret('not a key'));
  await dbQuery(urls.superuser, "alter system set max_wal_size = '8GB'");
  await dbQuery(urls.superuser, 'select pg_reload_conf()');
  const startedAtMs = performance.now();
  const world = await seedWorld({
    superuserUrl: urls.superuser,
    keyring: crypto.keyring,
    argon2idHash,
    size,
    retentionMs: config.RETENTION_SECONDS * secondMs,
    hourlyDays: config.USAGE_HOURLY_DAYS,
    log,
  });
  report('seeding', (performance.now() - startedAtMs) / 1000, 's');
  await dbQuery(urls.superuser, 'alter system reset max_wal_size');
  await dbQuery(urls.superuser, 'select pg_reload_conf()');
  return world;
}

/** The audit of all states takes the longest. */
const auditLast = (one: Job, other: Job) => Number(one.name === 'audit_states') - Number(other.name === 'audit_states');

const testbed = await startTestbed(options.keep);
try {
  const { urls, env, transactor, bootstrapped } = testbed;
  const config = readConfig(env);
  const world = (options.keep && readKept<World>(options.keep, 'world')) || (await seed(testbed, config, size));
  if (options.keep !== undefined) writeKept(options.keep, 'world', world);
  const [stored = {}] = await dbQuery(
    urls.superuser,
    `select pg_database_size(current_database()) / 1e6 as total, pg_table_size('history') / 1e6 as history,
       pg_indexes_size('history') / 1e6 as indexes`,
  );
  report('database', Number(stored['total']), 'MB');
  report('history without its indexes', Number(stored['history']), 'MB');
  report('indexes of history', Number(stored['indexes']), 'MB');

  let server = await testbed.startLatchkey();
  await server.stop();
  const startMs = await timed(async () => {
    server = await testbed.startLatchkey();
  });
  report('start-up', startMs / 1000, 's', { atMost: 5 });
  const base = `http://127.0.0.1:${server.port}`;
  const { biggest, small } = world;
  const bearer = (token: Secret) => ({ authorization: `Bearer ${token.reveal()}` });
  const operator = bearer(bootstrapped.operatorToken);

  await measureLists({ base, biggest, small, operator, report, log });

  const scrapes: number[] = [];
  for (let round = 0; round < 5; round++) {
    scrapes.push(await timed(async () => (await fetch(`${base}/metrics`, { headers: operator })).text()));
  }
  report('/metrics', median(scrapes), 'ms', { atMost: 200 });

  const verifier = bearer(bootstrapped.verifierToken);
  const verifyMs: number[] = [];
  for (const plaintext of world.plaintexts.slice(0, 500)) {
    const body = JSON.stringify({ key: plaintext.reveal(), permission: 'read' });
    const headers = { ...verifier, 'content-type': 'application/json' };
    verifyMs.push(
      await timed(async () => (await fetch(`${base}/v1/verify`, { method: 'POST', headers, body })).text()),
    );
  }
  report('verify, first use of a key', median(verifyMs), 'ms');
  report('memory of the process', (await server.stats(true)).rssBytes / 2 ** 20, 'MiB');

  const latchkey = async (...args: string[]) => {
    const program = path.join(import.meta.dirname, '../dist/src/cli/latchkey.js');
    const child = spawn(process.execPath, [program, ...args], {
      env: { PATH: process.env['PATH'], ...env },
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => {
      output += chunk.toString();
    });
    const [code] = await once(child, 'close');
    for (const line of output.split('\n')) if (/^(wrong|bad)/i.test(line)) log(line);
    return code as number;
  };
  report('latchkey doctor', (await timed(() => latchkey('doctor'))) / 1000, 's', { atMost: 10 });
  const chainMs = await timed(async () => {
    const client = connect({ url: urls.app, poolSize: 1 });
    const verdict = await verifyChain(client.db, biggest.id);
    await client.close();
    if (verdict.flaws.length > 0) log(JSON.stringify(verdict.flaws));
  });
  report('verification of a chain, events a second', (biggest.events * 1000) / chainMs, '');
  const audit = (...args: string[]) => timed(() => latchkey('audit', 'verify', '--organization', biggest.id, ...args));
  report('latchkey audit verify --full of that chain', (await audit('--full')) / 1000, 's');
  report('latchkey audit verify of that chain, from where it ended', (await audit()) / 1000, 's');
  let lines = 0;
  const exportMs = await timed(async () => {
    const response = await fetch(`${base}/v1/history/export`, { headers: bearer(biggest.adminToken) });
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      for (const byte of chunk) if (byte === 0x0a) lines += 1;
    }
  });
  report('export, events a second', (lines * 1000) / exportMs, '', { atLeast: 40_000 });

  await measureIndexing({ base, ownerUrl: urls.owner, biggest, verifier, plaintexts: world.plaintexts, report });
  for (const { name, schedule, run } of [...jobs].sort(auditLast)) {
    let done = 0;
    const ms = await timed(async () => {
      const settings = { usageHourlyDays: config.USAGE_HOURLY_DAYS, retentionSeconds: config.RETENTION_SECONDS };
      const logger = { error: (facts: unknown) => log(JSON.stringify(facts)) };
      done = await run({ transactor, settings, logger, signal: new AbortController().signal });
    });
    report(`job ${name}: ${done} done`, ms / 1000, 's', { atMost: periodMsOf(schedule, new Date()) / 1000 });
  }
  report('memory of the process at the end', (await server.stats(true)).rssBytes / 2 ** 20, 'MiB');
  log(missed === 0 ? 'met: every target' : `missed: ${missed} targets`);
} finally {
  await testbed.stop();
}
process.exit(missed === 0 ? 0 : 1);
