import { setTimeout as delay } from 'node:timers/promises';
import { mintToken, tokenParts } from '../src/crypto/token.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { dbAddEvents } from '../test/support/histories.ts';
import { attack } from './hostile-load.ts';
import { startLoad } from './load-generator.ts';
import { verifyQuestion } from './request-templates.ts';
import type { Server } from './servers.ts';
import { openStage } from './testbed.ts';

// Hostile clients beside a good one: `npm run bench:hostile`, two minutes, or with another number of seconds behind it.
// `npm run bench:hostile 120 anonymous` leaves out the admin among them. Exit code 1 where a promise is not kept.
// Whatever it starts it ends.

const seconds = Number(process.argv[2] ?? 120);
const isAdminHostile = process.argv[3] !== 'anonymous';
const events = 20_000;
const mostGrowthBytes = 150 * 2 ** 20;
const slowestP99Ms = 250;
/** What the service closes by itself, it has closed by then: replies that nobody reads, idle connections of the pool. */
const closedWithinMs = 60_000;
/** The medians of two kinds of wrong keys differ by no more, as a part of the smaller one. */
const greatestDifference = 0.1;
const goodKeysBetween = 8;
const megabytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
const say = (what: string) => process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${what}\n`);

const stage = await openStage();
const good = startLoad();
let isKept = true;
const promise = (kept: boolean, what: string) => {
  isKept &&= kept;
  say(`${kept ? 'kept' : 'missed'}: ${what}`);
};
try {
  const { organizationId, adminToken, verifierToken } = stage.bootstrapped;
  await dbAddEvents(stage.urls.superuser, organizationId, events);
  const keys = await stage.addKeys(organizationId, 50);
  good.give('good', keys);
  const server = await stage.startLatchkey();
  const guesses = await timeGuesses(server.port, verifierToken.reveal(), keys[0] ?? '');
  promise(
    Math.abs(guesses.unknownIdMs / guesses.wrongSecretMs - 1) <= greatestDifference,
    `a key with an unknown id takes ${guesses.unknownIdMs.toFixed(3)} ms, one with a wrong secret ${guesses.wrongSecretMs.toFixed(3)} ms`,
  );
  const verify = (forSeconds: number) =>
    good.run({
      port: server.port,
      question: verifyQuestion(verifierToken.reveal(), '"valid":true'),
      connections: 4,
      seconds: forSeconds,
      keySet: 'good',
      order: 'around',
      requestsASecond: 200,
    });
  const alone = await verify(5);
  const before = await server.facts(true);
  say(`alone: p50 ${alone.p50Ms.toFixed(1)} ms, p99 ${alone.p99Ms.toFixed(1)} ms; ${describe(before)}`);

  const watching = new AbortController();
  const watched = mostMemory(server, watching.signal);
  const [beside, left] = await Promise.all([
    verify(seconds),
    attack({ port: server.port, adminToken: isAdminHostile ? adminToken.reveal() : undefined }, seconds),
  ]);
  watching.abort();
  const growth = (await watched) - before.rssBytes;
  let after = await server.facts(true);
  say(`right after: ${describe(after)}`);
  for (const until = performance.now() + closedWithinMs; performance.now() < until; await delay(250)) {
    if (after.descriptors <= before.descriptors) break;
    after = await server.facts(true);
  }
  for (const socket of left) socket.destroy();
  say(`afterwards: ${describe(after)}`);
  const { answers, wrong, p50Ms, p99Ms } = beside;
  promise(wrong === 0, `the good client had ${answers} answers, ${wrong} of them wrong`);
  promise(p99Ms < slowestP99Ms, `its p50 was ${p50Ms.toFixed(1)} ms, its p99 ${p99Ms.toFixed(1)} ms`);
  promise(growth < mostGrowthBytes, `memory grew by ${megabytes(growth)} at most`);
  promise(
    after.descriptors <= before.descriptors,
    `descriptors: ${before.descriptors} before, ${after.descriptors} afterwards`,
  );
} catch (error) {
  isKept = false;
  say(`missed: ${String(error)}`);
} finally {
  good.stop();
  await stage.close();
}
process.exit(isKept ? 0 : 1);

/** Median times of two kinds of wrong keys. Each key is sent twice and the second time counts; the kinds alternate. */
async function timeGuesses(port: number, verifierToken: string, goodKey: string) {
  const { prefix } = stage.crypto;
  const make = {
    unknownIdMs: () => mintToken({ prefix, kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal(),
    wrongSecretMs: () => mintToken({ prefix, kind: 'k', idSuffix: tokenParts(goodKey, prefix).idSuffix }).reveal(),
  };
  const send = async (key: string) => {
    const startedAtMs = performance.now();
    const response = await fetch(`http://127.0.0.1:${port}/v1/verify`, {
      method: 'POST',
      headers: { authorization: `Bearer ${verifierToken}`, 'content-type': 'application/json' },
      body: JSON.stringify({ key, permission: 'read' }),
    });
    const text = await response.text();
    if (text.includes('"valid":true') !== (key === goodKey)) throw new Error(`the answer was ${text}`);
    return performance.now() - startedAtMs;
  };
  const times = { unknownIdMs: [] as number[], wrongSecretMs: [] as number[] };
  const kinds = ['unknownIdMs', 'wrongSecretMs'] as const;
  for (let round = 0; round < 500; round++) {
    for (const kind of kinds) {
      const key = make[kind]();
      await send(key);
      // The first one may have read the database. After good keys both kinds find the processor's caches in the same state.
      for (let sent = 0; sent < goodKeysBetween; sent++) await send(goodKey);
      times[kind].push(await send(key));
    }
  }
  const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
  return { unknownIdMs: median(times.unknownIdMs), wrongSecretMs: median(times.wrongSecretMs) };
}

async function mostMemory(server: Server, signal: AbortSignal): Promise<number> {
  let most = 0;
  while (!signal.aborted) {
    most = Math.max(most, (await server.facts()).rssBytes);
    await delay(200, undefined, { signal }).catch(() => undefined);
  }
  return most;
}

function describe({ rssBytes, descriptors }: { rssBytes: number; descriptors: number }): string {
  return `${megabytes(rssBytes)}, ${descriptors} descriptors`;
}
