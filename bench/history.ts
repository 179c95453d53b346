import { dbQuery } from '../test/support/database.ts';
import { dbAddEvents, frequentPairs } from '../test/support/histories.ts';
import { startTestbed } from './testbed.ts';

// `npm run bench:history [events]` measures the response time of a page of history for each filter and each pair of
// filters, with and without a time range, over events of five years. Exits with 1 if a page takes longer than the limit.

const events = Number(process.argv[2] ?? 1_500_000);
const limitMs = 100;
const rounds = 5;
const log = (message: string) => process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${message}\n`);

const testbed = await startTestbed();
let missed = 0;
try {
  const { organizationId, adminToken } = testbed.bootstrapped;
  const { superuser } = testbed.urls;
  const { factsOf, values, times } = frequentPairs(events);
  log(`writing ${events} events`);
  await dbAddEvents(superuser, organizationId, events, factsOf);
  await dbQuery(superuser, 'vacuum analyze history');
  const sizes = await dbQuery(
    superuser,
    `select indexrelname as name, pg_size_pretty(pg_relation_size(indexrelid)) as size from pg_stat_user_indexes
     where relname = 'history' order by indexrelname`,
  );
  for (const { name, size } of sizes) log(`${String(name).padEnd(36)} ${size}`);
  const server = await testbed.startLatchkey();
  const headers = { authorization: `Bearer ${adminToken.reveal()}` };

  async function measure(label: string, query: Record<string, string>): Promise<void> {
    const durationsMs: number[] = [];
    let found = 0;
    for (let round = 0; round < rounds; round++) {
      const startedAtMs = performance.now();
      const response = await fetch(`http://127.0.0.1:${server.port}/v1/history?${new URLSearchParams(query)}`, {
        headers,
      });
      const body = (await response.json()) as { data?: unknown[] };
      durationsMs.push(performance.now() - startedAtMs);
      if (body.data === undefined) throw new Error(`${label}: ${JSON.stringify(body)}`);
      found = body.data.length;
    }
    durationsMs.sort((a, b) => a - b);
    const [median = 0, maximum = 0] = [durationsMs[Math.floor(rounds / 2)], durationsMs.at(-1)];
    if (maximum > limitMs) missed += 1;
    const figures = `${median.toFixed(1).padStart(8)} ${maximum.toFixed(1).padStart(8)}`;
    log(`${label.padEnd(52)} ${String(found).padStart(3)} found ${figures} ms${maximum > limitMs ? '  MISSED' : ''}`);
  }

  const names = Object.keys(values) as Array<keyof typeof values>;
  const filters: Array<[label: string, filter: Record<string, string>]> = [
    ['no filter', {}],
    ...names.map((name): [string, Record<string, string>] => [name, { [name]: values[name][0] }]),
  ];
  for (const [index, first] of names.entries()) {
    for (const second of names.slice(index + 1)) {
      filters.push([`${first}, ${second}`, { [first]: values[first][0], [second]: values[second][0] }]);
      filters.push([`${first}, ${second}, no match`, { [first]: values[first][0], [second]: values[second][1] }]);
      filters.push([`${second}, ${first}, no match`, { [first]: values[first][1], [second]: values[second][0] }]);
    }
  }
  const [later, earlier] = times;
  const ranges: Array<[label: string, range: Record<string, string>]> = [
    ['', {}],
    ['; to', { to: earlier }],
    ['; from', { from: later }],
    ['; from, to', { from: earlier, to: later }],
  ];
  log(`${''.padEnd(62)}   median      max of ${rounds}`);
  for (const [filterLabel, filter] of filters) {
    for (const [rangeLabel, range] of ranges) await measure(`${filterLabel}${rangeLabel}`, { ...filter, ...range });
  }
  log(`${missed === 0 ? 'met' : 'missed'}: every page within ${limitMs} ms`);
} finally {
  await testbed.stop();
}
process.exit(missed === 0 ? 0 : 1);
