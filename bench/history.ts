import { dbQuery } from '../test/support/database.ts';
import { dbAddEvents, frequentPairs } from '../test/support/histories.ts';
import { openStage } from './testbed.ts';

// How long a page of history takes by each filter and each pair of filters, alone and within times, over one
// organization's 1,500,000 events of five years: `npm run bench:history`, or with another number behind it. The service
// has its default settings. Exits with 1 where a page takes longer than the limit.

const events = Number(process.argv[2] ?? 1_500_000);
const limitMs = 100;
const rounds = 5;
const say = (what: string) => process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${what}\n`);

const stage = await openStage();
let missed = 0;
try {
  const { organizationId, adminToken } = stage.bootstrapped;
  const { superuser } = stage.urls;
  const { factsOf, values, times } = frequentPairs(events);
  say(`${events} events are written`);
  await dbAddEvents(superuser, organizationId, events, factsOf);
  await dbQuery(superuser, 'vacuum analyze history');
  const sizes = await dbQuery(
    superuser,
    `select indexrelname as name, pg_size_pretty(pg_relation_size(indexrelid)) as size from pg_stat_user_indexes
     where relname = 'history' order by indexrelname`,
  );
  for (const { name, size } of sizes) say(`${String(name).padEnd(36)} ${size}`);
  const server = await stage.startLatchkey();
  const headers = { authorization: `Bearer ${adminToken.reveal()}` };

  async function measure(what: string, query: Record<string, string>): Promise<void> {
    const took: number[] = [];
    let found = 0;
    for (let round = 0; round < rounds; round++) {
      const startedAtMs = performance.now();
      const response = await fetch(`http://127.0.0.1:${server.port}/v1/history?${new URLSearchParams(query)}`, {
        headers,
      });
      const body = (await response.json()) as { data?: unknown[] };
      took.push(performance.now() - startedAtMs);
      if (body.data === undefined) throw new Error(`${what}: ${JSON.stringify(body)}`);
      found = body.data.length;
    }
    took.sort((one, other) => one - other);
    const [median = 0, most = 0] = [took[Math.floor(rounds / 2)], took.at(-1)];
    if (most > limitMs) missed += 1;
    const figures = `${median.toFixed(1).padStart(8)} ${most.toFixed(1).padStart(8)}`;
    say(`${what.padEnd(52)} ${String(found).padStart(3)} found ${figures} ms${most > limitMs ? '  MISSED' : ''}`);
  }

  const names = Object.keys(values) as Array<keyof typeof values>;
  const filters: Array<[what: string, filter: Record<string, string>]> = [
    ['nothing', {}],
    ...names.map((name): [string, Record<string, string>] => [name, { [name]: values[name][0] }]),
  ];
  for (const [index, one] of names.entries()) {
    for (const other of names.slice(index + 1)) {
      filters.push([`${one}, ${other}`, { [one]: values[one][0], [other]: values[other][0] }]);
      filters.push([`${one}, ${other}, never`, { [one]: values[one][0], [other]: values[other][1] }]);
      filters.push([`${other}, ${one}, never`, { [one]: values[one][1], [other]: values[other][0] }]);
    }
  }
  const [later, earlier] = times;
  const ranges: Array<[what: string, range: Record<string, string>]> = [
    ['', {}],
    ['; to', { to: earlier }],
    ['; from', { from: later }],
    ['; from, to', { from: earlier, to: later }],
  ];
  say(`${''.padEnd(62)}   median      max of ${rounds}`);
  for (const [filter, of] of filters) {
    for (const [range, within] of ranges) await measure(`${filter}${range}`, { ...of, ...within });
  }
  say(`${missed === 0 ? 'kept' : 'missed'}: every page within ${limitMs} ms`);
} finally {
  await stage.close();
}
process.exit(missed === 0 ? 0 : 1);
