import { once } from 'node:events';
import { request } from 'node:http';
import { dbQuery } from '../test/support/database.ts';
import { dbAddEvents } from '../test/support/histories.ts';
import { openStage } from './testbed.ts';

// What an export of a history of 1,000,000 events costs the service in memory: `npm run bench:export`, or with another
// number behind it. The reader takes what comes; then another one reads a little and waits. Whatever it starts it ends.

const events = Number(process.argv[2] ?? 1_000_000);
const mostGrowthBytes = 100 * 2 ** 20;
const warmingRequests = 2_000;
const megabytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
const say = (what: string) => process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${what}\n`);

const stage = await openStage();
let kept = false;
try {
  const { organizationId, adminToken } = stage.bootstrapped;
  say(`${events} events are written`);
  // Only the order is asked for here, and without these it is written in a tenth of the time.
  const [{ names } = {}] = await dbQuery(
    stage.urls.superuser,
    `select string_agg(indexname, ', ') as names from pg_indexes where indexname like 'history_by_%'`,
  );
  await dbQuery(stage.urls.superuser, `drop index ${String(names)}`);
  await dbAddEvents(stage.urls.superuser, organizationId, events);
  await dbQuery(stage.urls.superuser, 'analyze history');
  const server = await stage.startLatchkey();
  const headers = { authorization: `Bearer ${adminToken.reveal()}` };
  const begin = async () => {
    const asked = request({ port: server.port, host: '127.0.0.1', path: '/v1/history/export', headers, agent: false });
    asked.end();
    const [response] = await once(asked, 'response');
    return response as AsyncIterable<Buffer> & { destroy(): void };
  };

  // What any service takes once it has been at work is not the export's.
  for (let asked = 0; asked < warmingRequests; asked++) {
    await (await fetch(`http://127.0.0.1:${server.port}/v1/self`, { headers })).arrayBuffer();
  }
  const before = (await server.facts(true)).rssBytes;
  let most = before;
  const watch = async () => {
    most = Math.max(most, (await server.facts()).rssBytes);
  };
  const startedAtMs = performance.now();
  let [bytes, lines, watchedAtMs] = [0, 0, startedAtMs];
  for await (const chunk of await begin()) {
    bytes += chunk.length;
    for (const byte of chunk) if (byte === 0x0a) lines += 1;
    if (performance.now() - watchedAtMs < 100) continue;
    await watch();
    watchedAtMs = performance.now();
  }
  const seconds = (performance.now() - startedAtMs) / 1000;
  if (lines < events) throw new Error(`only ${lines} lines came`);
  say(`${lines} events, ${megabytes(bytes)}, in ${seconds.toFixed(0)} s: ${Math.round(lines / seconds)} a second`);

  const slow = await Promise.all([begin(), begin(), begin(), begin()]);
  for (const end = performance.now() + 5_000; performance.now() < end; ) await watch();
  for (const response of slow) response.destroy();
  const growth = most - before;
  kept = growth < mostGrowthBytes;
  say(`memory ${megabytes(before)} → at most ${megabytes(most)}, with four readers that wait among it`);
  say(`${kept ? 'kept' : 'missed'}: it grows by less than ${megabytes(mostGrowthBytes)}: ${megabytes(growth)}`);
} finally {
  await stage.close();
}
process.exit(kept ? 0 : 1);
