import { setTimeout as delay } from 'node:timers/promises';
import { mintToken, tokenParts } from '../src/crypto/token.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { dbAddEvents } from '../test/support/histories.ts';
import { attack } from './hostile-load.ts';
import { startLoadGenerator } from './load-generator.ts';
import { verifyRequest } from './request-templates.ts';
import type { Server } from './servers.ts';
import { startTestbed } from './testbed.ts';

// `npm run bench:hostile [seconds]` attacks a server beside a normal client. `npm run bench:hostile 120 anonymous` attacks
// without an admin's token. Exits with 1 if a target is missed.

const seconds = Number(process.argv[2] ?? 120);
const isAdminHostile = process.argv[3] !== 'anonymous';
const events = 20_000;
const maximumGrowthBytes = 150 * 2 ** 20;
const maximumP99Ms = 250;
/** Within this time the service closes stalled connections and idle connections of the pool. */
const closedWithinMs = 60_000;
/** The target for the relative difference between the response times of unknown ids and wrong secrets. */
const maximumTimingDifference = 0.1;
const validKeysBetween = 8;
const megabytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
const log = (message: string) => process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${message}\n`);

const testbed = await startTestbed();
const normalClient = startLoadGenerator();
let allMet = true;
const reportTarget = (isMet: boolean, measured: string) => {
  allMet &&= isMet;
  log(`${isMet ? 'met' : 'missed'}: ${measured}`);
};
try {
  const { organizationId, adminToken, verifierToken } = testbed.bootstrapped;
  await dbAddEvents(testbed.urls.superuser, organizationId, events);
  const keys = await testbed.addKeys(organizationId, 50);
  normalClient.setKeys('valid', keys);
  const server = await testbed.startLatchkey();
  const timings = await timeInvalidKeys(server.port, verifierToken.reveal(), keys[0] ?? '');
  reportTarget(
    Math.abs(timings.unknownIdMs / timings.wrongSecretMs - 1) <= maximumTimingDifference,
    `median response time: unknown id ${timings.unknownIdMs.toFixed(3)} ms, wrong secret ${timings.wrongSecretMs.toFixed(3)} ms`,
  );
  const verify = (durationSeconds: number) =>
    normalClient.run({
      port: server.port,
      template: verifyRequest(verifierToken.reveal(), '"valid":true'),
      connections: 4,
      seconds: durationSeconds,
      keySet: 'valid',
      order: 'cyclic',
      requestsPerSecond: 200,
    });
  const alone = await verify(5);
  const before = await server.stats(true);
  log(
    `normal client without the attack: p50 ${alone.p50Ms.toFixed(1)} ms, p99 ${alone.p99Ms.toFixed(1)} ms; ${describe(before)}`,
  );

  const watching = new AbortController();
  const maximumRss = watchMaximumRss(server, watching.signal);
  const [duringAttack, stalledSockets] = await Promise.all([
    verify(seconds),
    attack({ port: server.port, adminToken: isAdminHostile ? adminToken.reveal() : undefined }, seconds),
  ]);
  watching.abort();
  const growth = (await maximumRss) - before.rssBytes;
  let after = await server.stats(true);
  log(`after the attack: ${describe(after)}`);
  for (const deadline = performance.now() + closedWithinMs; performance.now() < deadline; await delay(250)) {
    if (after.descriptors <= before.descriptors) break;
    after = await server.stats(true);
  }
  for (const socket of stalledSockets) socket.destroy();
  log(`after the service has closed idle connections: ${describe(after)}`);
  const { responses, unexpected, p50Ms, p99Ms } = duringAttack;
  reportTarget(unexpected === 0, `normal client: ${unexpected} of ${responses} responses were unexpected`);
  reportTarget(p99Ms < maximumP99Ms, `normal client: p50 ${p50Ms.toFixed(1)} ms, p99 ${p99Ms.toFixed(1)} ms`);
  reportTarget(growth < maximumGrowthBytes, `resident memory grew by at most ${megabytes(growth)}`);
  reportTarget(
    after.descriptors <= before.descriptors,
    `open descriptors: ${before.descriptors} before, ${after.descriptors} after`,
  );
} catch (error) {
  allMet = false;
  log(`failed: ${String(error)}`);
} finally {
  normalClient.stop();
  await testbed.stop();
}
process.exit(allMet ? 0 : 1);

/** Measures the median response times of two kinds of invalid keys. The kinds alternate. */
async function timeInvalidKeys(port: number, verifierToken: string, validKey: string) {
  const { prefix } = testbed.crypto;
  const create = {
    unknownIdMs: () => mintToken({ prefix, kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal(),
    wrongSecretMs: () => mintToken({ prefix, kind: 'k', idSuffix: tokenParts(validKey, prefix).idSuffix }).reveal(),
  };
  const send = async (key: string) => {
    const startedAtMs = performance.now();
    const response = await fetch(`http://127.0.0.1:${port}/v1/verify`, {
      method: 'POST',
      headers: { authorization: `Bearer ${verifierToken}`, 'content-type': 'application/json' },
      body: JSON.stringify({ key, permission: 'read' }),
    });
    const text = await response.text();
    if (text.includes('"valid":true') !== (key === validKey)) throw new Error(`unexpected response: ${text}`);
    return performance.now() - startedAtMs;
  };
  const times = { unknownIdMs: [] as number[], wrongSecretMs: [] as number[] };
  const kinds = ['unknownIdMs', 'wrongSecretMs'] as const;
  for (let round = 0; round < 500; round++) {
    for (const kind of kinds) {
      const key = create[kind]();
      await send(key);
      // The first request may read the database, so only the second counts. The valid keys in between give both kinds the
      // same processor caches.
      for (let sent = 0; sent < validKeysBetween; sent++) await send(validKey);
      times[kind].push(await send(key));
    }
  }
  const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
  return { unknownIdMs: median(times.unknownIdMs), wrongSecretMs: median(times.wrongSecretMs) };
}

async function watchMaximumRss(server: Server, signal: AbortSignal): Promise<number> {
  let maximum = 0;
  while (!signal.aborted) {
    maximum = Math.max(maximum, (await server.stats()).rssBytes);
    await delay(200, undefined, { signal }).catch(() => undefined);
  }
  return maximum;
}

function describe({ rssBytes, descriptors }: { rssBytes: number; descriptors: number }): string {
  return `${megabytes(rssBytes)}, ${descriptors} descriptors`;
}
