import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describeMachine } from './report.ts';
import { countEvents, findDifferences, verifyChain } from './soak-check.ts';
import { runSoak, type SoakOptions } from './soak-load.ts';
import { startTestbed } from './testbed.ts';

// `npm run soak [-- --minutes 2]` runs a mixed load for ten minutes. Memory must not grow, the chain must be valid, and
// history and usage must match the acknowledged requests. Exits with 1 otherwise.

const minutesIndex = process.argv.indexOf('--minutes');
const minutes = minutesIndex < 0 ? 10 : Number(process.argv[minutesIndex + 1]);
const options: SoakOptions = {
  seconds: minutes * 60,
  verifiers: 8,
  writers: 4,
  readers: 2,
  pauseMs: { verifiers: 4, others: 100 },
};
const sampleIntervalMs = (options.seconds * 1_000) / 30;
const env = {
  CALLER_LIMIT: '1000000000',
  REVEAL_LIMIT: '1000000000',
  // A small cache fills early, so later growth is a leak.
  VERIFY_CACHE_SIZE: '1000',
  // A busy machine must not cause rejected requests.
  DATABASE_TIMEOUT_MS: '20000',
  EVENT_LOOP_DELAY_LIMIT_MS: '60000',
};
/** The memory of the last third of the run, relative to the second third. Caches fill in the first third. */
const maximumMemoryRatio = 1.1;

const testbed = await startTestbed();
let exitCode = 1;
try {
  const server = await testbed.startLatchkey(env);
  const { adminToken, verifierToken } = testbed.bootstrapped;
  const target = {
    url: `http://127.0.0.1:${server.port}`,
    adminToken: adminToken.reveal(),
    verifierToken: verifierToken.reveal(),
  };
  const eventsBefore = await countEvents(testbed.urls.superuser);
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
  const tally = await runSoak(target, options);
  sampling.abort();
  await samplingDone;
  const events = await verifyChain(target);
  const { cpuMicros } = await server.stats();
  const stopStartedAtMs = performance.now();
  await server.stop();
  const stopMs = Math.round(performance.now() - stopStartedAtMs);
  const differences = await findDifferences(testbed.urls.superuser, tally, eventsBefore);

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
    changes,
    events,
    unexpected: tally.unexpected,
    differences,
    usedMb: { first: round(median(usedMb.slice(0, third))), second: round(second), last: round(last) },
    rssMb: { first: round(samples[0]?.rssMb ?? 0), last: round(samples.at(-1)?.rssMb ?? 0) },
    cpuSeconds: round(cpuMicros / 1e6),
    stopMs,
    isMemoryStable,
  };
  const file = path.join(import.meta.dirname, 'soak-results.json');
  writeFileSync(file, `${JSON.stringify(results, null, 2)}\n`);
  process.stdout.write(`${JSON.stringify(results, null, 2)}\n${file}\n`);
  const isConsistent = events !== undefined && differences.length === 0 && tally.unexpected.length === 0;
  exitCode = isConsistent && isMemoryStable ? 0 : 1;
} finally {
  await testbed.stop();
}
process.exit(exitCode);

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
