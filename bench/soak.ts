import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describeMachine } from './report.ts';
import { compareBooks, countEvents, verifyChain } from './soak-check.ts';
import { type SoakOptions, soak } from './soak-load.ts';
import { startTestbed } from './testbed.ts';

// A mixed load for a long time: `npm run soak`, ten minutes, or `npm run soak -- --minutes 2`. Memory must stay flat,
// the chain whole, and history and usage what was acknowledged. Whatever it starts it ends. Exit code 1 where something
// is wrong.

const asked = process.argv.indexOf('--minutes');
const minutes = asked < 0 ? 10 : Number(process.argv[asked + 1]);
const load: SoakOptions = {
  seconds: minutes * 60,
  verifiers: 8,
  writers: 4,
  readers: 2,
  pauseMs: { verifiers: 4, others: 100 },
};
const sampleEveryMs = (load.seconds * 1_000) / 30;
/** What is kept of keys and owners is bounded, so that what is measured is what leaks. */
const environment = {
  CALLER_LIMIT: '1000000000',
  REVEAL_LIMIT: '1000000000',
  VERIFY_CACHE_SIZE: '1000',
  // How late a busy machine is, is not what is measured.
  DATABASE_TIMEOUT_MS: '20000',
  EVENT_LOOP_DELAY_LIMIT_MS: '60000',
};
/** Memory that the last third of the samples may use beyond the second: caches fill in the first. */
const mayGrow = 1.1;

const testbed = await startTestbed();
let exitCode = 1;
try {
  const server = await testbed.startLatchkey(environment);
  const { adminToken, verifierToken } = testbed.bootstrapped;
  const target = {
    url: `http://127.0.0.1:${server.port}`,
    adminToken: adminToken.reveal(),
    verifierToken: verifierToken.reveal(),
  };
  const before = await countEvents(testbed.urls.superuser);
  const sampling = new AbortController();
  const samples: Array<{ usedMb: number; rssMb: number }> = [];
  const sampled = (async () => {
    while (!sampling.signal.aborted) {
      await delay(sampleEveryMs, undefined, { signal: sampling.signal }).catch(() => undefined);
      const { usedBytes, rssBytes } = await server.stats(true);
      samples.push({ usedMb: usedBytes / 1e6, rssMb: rssBytes / 1e6 });
      process.stderr.write(`${new Date().toISOString().slice(11, 19)} ${(usedBytes / 1e6).toFixed(1)} MB in use\n`);
    }
  })();
  const books = await soak(target, load);
  sampling.abort();
  await sampled;
  const events = await verifyChain(target);
  const { cpuMicros } = await server.stats();
  const stoppedAtMs = performance.now();
  await server.stop();
  const stopMs = Math.round(performance.now() - stoppedAtMs);
  const differences = await compareBooks(testbed.urls.superuser, books, before);

  const third = Math.floor(samples.length / 3);
  const usedMb = samples.map((sample) => sample.usedMb);
  const [second, last] = [median(usedMb.slice(third, 2 * third)), median(usedMb.slice(2 * third))];
  const isFlat = last <= second * mayGrow;
  const acts = Object.values(books.acts).reduce((sum, count) => sum + count, 0);
  const results = {
    date: new Date().toISOString(),
    machine: describeMachine(),
    minutes,
    requests: books.requests,
    allowed: books.allowed,
    acts,
    events,
    unexpected: books.unexpected,
    differences,
    usedMb: { first: round(median(usedMb.slice(0, third))), second: round(second), last: round(last) },
    rssMb: { first: round(samples[0]?.rssMb ?? 0), last: round(samples.at(-1)?.rssMb ?? 0) },
    cpuSeconds: round(cpuMicros / 1e6),
    stopMs,
    isFlat,
  };
  const file = path.join(import.meta.dirname, 'soak-results.json');
  writeFileSync(file, `${JSON.stringify(results, null, 2)}\n`);
  process.stdout.write(`${JSON.stringify(results, null, 2)}\n${file}\n`);
  const isWhole = events !== undefined && differences.length === 0 && books.unexpected.length === 0;
  exitCode = isWhole && isFlat ? 0 : 1;
} finally {
  await testbed.stop();
}
process.exit(exitCode);

function median(values: number[]): number {
  return values.toSorted((one, other) => one - other)[Math.floor(values.length / 2)] ?? 0;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
