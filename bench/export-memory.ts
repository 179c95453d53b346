import { once } from 'node:events';
import { request } from 'node:http';
import { dbQuery } from '../test/support/database.ts';
import { dbAddEvents } from '../test/support/histories.ts';
import { startTestbed } from './testbed.ts';

// `npm run bench:export [events]` measures how much memory an export of history needs: first one client that reads the
// whole export, then four clients that stop reading.

const events = Number(process.argv[2] ?? 1_000_000);
const maximumGrowthBytes = 100 * 2 ** 20;
const warmUpRequests = 2_000;
const megabytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
const log = (message: string) => process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${message}\n`);

const testbed = await startTestbed();
let isMet = false;
try {
  const { organizationId, adminToken } = testbed.bootstrapped;
  log(`writing ${events} events`);
  // An export does not use these indexes, and without them the inserts take a tenth of the time.
  const [{ names } = {}] = await dbQuery(
    testbed.urls.superuser,
    `select string_agg(indexname, ', ') as names from pg_indexes where indexname like 'history_by_%'`,
  );
  await dbQuery(testbed.urls.superuser, `drop index ${String(names)}`);
  await dbAddEvents(testbed.urls.superuser, organizationId, events);
  await dbQuery(testbed.urls.superuser, 'analyze history');
  const server = await testbed.startLatchkey();
  const headers = { authorization: `Bearer ${adminToken.reveal()}` };
  const startExport = async () => {
    const exportRequest = request({
      port: server.port,
      host: '127.0.0.1',
      path: '/v1/history/export',
      headers,
      agent: false,
    });
    exportRequest.end();
    const [response] = await once(exportRequest, 'response');
    return response as AsyncIterable<Buffer> & { destroy(): void };
  };

  // Any running service needs this memory, so it is not part of the growth.
  for (let sent = 0; sent < warmUpRequests; sent++) {
    await (await fetch(`http://127.0.0.1:${server.port}/v1/self`, { headers })).arrayBuffer();
  }
  const before = (await server.stats(true)).rssBytes;
  let maximum = before;
  const sampleMemory = async () => {
    maximum = Math.max(maximum, (await server.stats()).rssBytes);
  };
  const startedAtMs = performance.now();
  let [bytes, lines, sampledAtMs] = [0, 0, startedAtMs];
  for await (const chunk of await startExport()) {
    bytes += chunk.length;
    for (const byte of chunk) if (byte === 0x0a) lines += 1;
    if (performance.now() - sampledAtMs < 100) continue;
    await sampleMemory();
    sampledAtMs = performance.now();
  }
  const seconds = (performance.now() - startedAtMs) / 1000;
  if (lines < events) throw new Error(`the export has only ${lines} lines`);
  log(
    `${lines} events, ${megabytes(bytes)}, in ${seconds.toFixed(0)} s: ${Math.round(lines / seconds)} events per second`,
  );

  const stalled = await Promise.all([startExport(), startExport(), startExport(), startExport()]);
  for (const end = performance.now() + 5_000; performance.now() < end; ) await sampleMemory();
  for (const response of stalled) response.destroy();
  const growth = maximum - before;
  isMet = growth < maximumGrowthBytes;
  log(`memory: ${megabytes(before)} before, at most ${megabytes(maximum)} during the exports`);
  log(`${isMet ? 'met' : 'missed'}: memory grows by less than ${megabytes(maximumGrowthBytes)}: ${megabytes(growth)}`);
} finally {
  await testbed.stop();
}
process.exit(isMet ? 0 : 1);
