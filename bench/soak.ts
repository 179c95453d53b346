import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { eventually } from '../test/support/process.ts';
import { describeMachine } from './report.ts';
import { median } from './sampling.ts';
import { countEvents, findDifferences, verifyChain } from './soak/books.ts';
import { runSoak } from './soak/load.ts';
import { startOutside } from './soak/outside.ts';
import type { SoakOptions } from './soak/session.ts';
import { startTestbed } from './testbed.ts';

// `npm run soak [-- --minutes 2]` runs a load with every feature for ten minutes. Memory must not grow, the chain must be
// valid, and records, history, usage and webhooks must match what was acknowledged. Exits with 1 otherwise.

const minutesIndex = process.argv.indexOf('--minutes');
const minutes = minutesIndex < 0 ? 10 : Number(process.argv[minutesIndex + 1]);
const options: SoakOptions = {
  seconds: minutes * 60,
  verifiers: 8,
  writers: 2,
  pauseMs: { verifiers: 10, others: 200 },
};
const sampleIntervalMs = (options.seconds * 1_000) / 30;
const env = {
  CALLER_LIMIT: '1000000000',
  REVEAL_LIMIT: '1000000000',
  ADDRESS_LIMIT: '1000000000',
  PUBLIC_LIMIT: '1000000000',
  // Short, so that the job purges deleted keys during the run.
  UNDO_WINDOW_SECONDS: '120',
  RETENTION_SECONDS: '240',
  // A small cache fills early, so later growth is a leak.
  VERIFY_CACHE_SIZE: '1000',
  // A busy machine must not cause rejected requests.
  DATABASE_TIMEOUT_MS: '20000',
  EVENT_LOOP_DELAY_LIMIT_MS: '60000',
};
/** The memory of the last third of the run, relative to the second third. Caches fill in the first third. */
const maximumMemoryRatio = 1.1;

/** More descriptors after the load than before are connections to Postgres, which stay open while they are idle. */
const maximumMoreDescriptors = 16;

const testbed = await startTestbed();
const outside = await startOutside();
let exitCode = 1;
try {
  const server = await testbed.startLatchkey({ ...env, ...outside.env });
  const { adminToken, operatorToken, verifierToken, organizationId } = testbed.bootstrapped;
  const target = {
    url: `http://127.0.0.1:${server.port}`,
    organizationId,
    adminToken: adminToken.reveal(),
    operatorToken: operatorToken.reveal(),
    verifierToken: verifierToken.reveal(),
  };
  const eventsBefore = await countEvents(testbed.urls.superuser);
  const { descriptors: descriptorsBefore } = await server.stats();
  const sampling = new AbortController();
  const samples: Array<{ usedMb: number; rssMb: number }> = [];
  const samplingDone = (async () => {
    while (!sampling.signal.aborted) {
      await delay(sampleIntervalMs, undefined, { signal: sampling.signal }).catch(() => undefined);
      const { usedBytes, rssBytes } = await server.stats(true);
      samples.push({ usedMb: usedBytes / 1e6, rssMb: rssBytes / 1e6 });
      process.stderr.write(`${new Date().toISOString().slice(11, 19)} ${(usedBytes / 1e6).toFixed(1)} MB in use\n`);
    }
  })();
  const tally = await runSoak(target, outside, options);
  sampling.abort();
  await samplingDone;
  const events = await verifyChain(target);
  const descriptorsAfter = async () => (await server.stats()).descriptors;
  const isClosed = await eventually(
    async () => (await descriptorsAfter()) <= descriptorsBefore + maximumMoreDescriptors,
    30_000,
  ).catch(() => false);
  const descriptors = { before: descriptorsBefore, after: await descriptorsAfter() };
  const { cpuMicros } = await server.stats();
  const stopStartedAtMs = performance.now();
  await server.stop();
  const stopMs = Math.round(performance.now() - stopStartedAtMs);
  const differences = await findDifferences(testbed.urls.superuser, { tally, outside, eventsBefore });
  const isAudited = runAudit();

  const third = Math.floor(samples.length / 3);
  const usedMb = samples.map((sample) => sample.usedMb);
  const [second, last] = [median(usedMb.slice(third, 2 * third)), median(usedMb.slice(2 * third))];
  const isMemoryStable = last <= second * maximumMemoryRatio;
  const changes = Object.values(tally.changes).reduce((sum, count) => sum + count, 0);
  const results = {
    date: new Date().toISOString(),
    machine: describeMachine(),
    minutes,
    requests: tally.requests,
    allowed: tally.allowed,
    rateLimited: tally.rateLimited,
    changes,
    changesByAction: tally.changes,
    rounds: tally.rounds,
    rejected: tally.rejected,
    events,
    webhooks: { arrived: outside.arrived.size, rejectedOnce: outside.rejected },
    unexpected: tally.unexpected,
    differences,
    usedMb: { first: round(median(usedMb.slice(0, third))), second: round(second), last: round(last) },
    rssMb: { first: round(samples[0]?.rssMb ?? 0), last: round(samples.at(-1)?.rssMb ?? 0) },
    cpuSeconds: round(cpuMicros / 1e6),
    descriptors,
    stopMs,
    isMemoryStable,
    isAudited,
  };
  const file = path.join(import.meta.dirname, 'soak-results.json');
  writeFileSync(file, `${JSON.stringify(results, null, 2)}\n`);
  process.stdout.write(`${JSON.stringify(results, null, 2)}\n${file}\n`);
  const isConsistent = events !== undefined && differences.length === 0 && tally.unexpected.length === 0;
  exitCode = isConsistent && isMemoryStable && isClosed && isAudited ? 0 : 1;
} finally {
  await testbed.stop();
  await outside.close();
}
process.exit(exitCode);

/** Whether `latchkey audit verify` finds neither a flaw nor a difference. */
function runAudit(): boolean {
  const program = path.join(import.meta.dirname, '../dist/src/cli/latchkey.js');
  try {
    execFileSync(process.execPath, [program, 'audit', 'verify'], {
      env: { PATH: process.env['PATH'], ...testbed.env },
    });
    return true;
  } catch (error) {
    process.stderr.write(`${String((error as { stdout?: Buffer }).stdout)}\n`);
    return false;
  }
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
