import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { mintToken } from '../src/crypto/token.ts';
import { idSuffix, type KeyId, newId } from '../src/domain/ids.ts';
import { traceIdOfRequestId } from '../src/domain/trace.ts';
import { startService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

const unknownKey = () => mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal();
const wrongSecretOf = (id: KeyId) => mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(id) }).reveal();

t.test(
  'a flood of wrong keys causes no argon2id run, few queries and no memory growth, and valid keys keep working',
  async (t) => {
    const service = await startService(t);
    const { admin, verifier, hasher, client, verification } = service;
    await eventually(async () => verification.feed.isLive());
    const { body: key } = await admin.post('/v1/keys', { rateLimit: { requests: 1_000_000, windowSeconds: 60 } });
    await admin.put('/v1/rate-limit', { requests: 1_000_000, windowSeconds: 60 });
    const verify = async (presented: string) =>
      (await verifier.post('/v1/verify', { key: presented, permission: 'read' })).body.code as string;
    t.equal(await verify(key.key), 'valid');
    const runsBefore = hasher.runs;
    let queries = 0;
    client.pool.on('acquire', () => {
      queries += 1;
    });

    const waves = [
      ['unknown ids', unknownKey, 'not_found'],
      ['wrong secrets of a key that exists', () => wrongSecretOf(key.id), 'not_found'],
      ['wrong checksums', () => `${unknownKey().slice(0, -6)}000000`, 'malformed'],
    ] as const;
    const inWave = 3_000;
    const atOnce = 100;
    const good: string[] = [];
    const flood = async () => {
      for (const [what, make, code] of waves) {
        const queriesBefore = queries;
        const startedAtMs = performance.now();
        for (let sent = 0; sent < inWave; sent += atOnce) {
          const [ownCode, ...codes] = await Promise.all([
            verify(key.key),
            ...Array.from({ length: atOnce }, () => verify(make())),
          ]);
          good.push(ownCode ?? '');
          if (codes.some((replyCode) => replyCode !== code)) t.fail(`${what}: ${codes}`);
        }
        // Jobs and counters continue: a few queries a second, however slow the machine is.
        const backgroundQueries = 5 + 3 * ((performance.now() - startedAtMs) / 1_000);
        const allowed = what === 'unknown ids' ? inWave / 10 : backgroundQueries;
        t.ok(queries - queriesBefore <= allowed, `${what}: ${queries - queriesBefore} queries for ${inWave} keys`);
      }
    };
    await flood();
    service.logLines.length = 0;
    collectGarbage();
    const heapBefore = process.memoryUsage().heapUsed;
    await flood();
    service.logLines.length = 0;
    collectGarbage();
    const grownBy = process.memoryUsage().heapUsed - heapBefore;
    t.ok(grownBy < 8 * 1024 * 1024, `the heap grew by ${grownBy} bytes in ${waves.length * inWave} wrong keys`);
    t.equal(hasher.runs, runsBefore, 'argon2id never ran');
    t.ok(good.every((code) => code === 'valid'));
  },
);

t.test('many concurrent and repeated requests for one unknown id cause one query', async (t) => {
  const { verifier, client, verification } = await startService(t);
  await eventually(async () => verification.feed.isLive());
  await verifier.post('/v1/verify', { key: unknownKey(), permission: 'read' });
  let queries = 0;
  client.pool.on('acquire', () => {
    queries += 1;
  });
  const key = unknownKey();
  for (let round = 0; round < 3; round++) {
    await Promise.all(Array.from({ length: 100 }, () => verifier.post('/v1/verify', { key, permission: 'read' })));
  }
  t.equal(queries, 1);
});

t.test('a key that this process has never seen costs one query and no argon2id run', async (t) => {
  const first = await startService(t);
  const { body: key } = await first.admin.post('/v1/keys', {});
  const { urls, keyring } = first;
  const second = await startService(t, { urls, keyring });
  await eventually(async () => second.verification.feed.isLive());
  const input = { role: 'verifier', scopes: ['read'], name: 'For all' };
  const verifier = second.as((await second.operator.post('/v1/access-tokens', input)).body.token);
  await verifier.get('/v1/self');
  const runsBefore = second.hasher.runs;
  let queries = 0;
  second.client.pool.on('acquire', () => {
    queries += 1;
  });
  const verify = async () => (await verifier.post('/v1/verify', { key: key.key, permission: 'write' })).body.code;
  t.equal(await verify(), 'valid');
  t.equal(queries, 1);
  for (let round = 0; round < 20; round++) t.equal(await verify(), 'valid');
  t.equal(queries, 1, 'later requests are answered from memory');
  const keyToVerify = { key: key.key, permission: 'write' };
  const fresh = () => verifier.post('/v1/verify', keyToVerify, { 'cache-control': 'max-age=0, No-Cache' });
  t.equal((await fresh()).body.code, 'valid');
  t.equal((await fresh()).body.code, 'valid');
  t.equal(queries, 3, 'Cache-Control: no-cache reads again');
  t.equal(second.hasher.runs, runsBefore);
});

t.test('neither the reply nor its cost reveals whether an id exists', async (t) => {
  const service = await startService(t);
  const { app, admin, verifier, hasher, verification } = service;
  await eventually(async () => verification.feed.isLive());
  const { body: key } = await admin.post('/v1/keys', {});
  const { lookups } = verification.records.apiKeys;
  const authorize = async (presented: string) => {
    const before = { reads: lookups.miss, argon2Runs: hasher.runs };
    const response = await app.inject({
      url: '/v1/authorize',
      headers: {
        authorization: `Bearer ${presented}`,
        'x-latchkey-token': verifier.token,
        'x-forwarded-method': 'GET',
      },
    });
    const { date, 'x-request-id': requestId, ...headers } = response.headers;
    const body = response.body
      .replaceAll(String(requestId), 'the request id')
      .replaceAll(traceIdOfRequestId(String(requestId)), 'the trace id');
    return {
      answer: JSON.stringify({ status: response.statusCode, headers, body }),
      work: { reads: lookups.miss - before.reads, argon2Runs: hasher.runs - before.argon2Runs },
    };
  };
  // `npm run bench:hostile` compares the times.
  const invalidKeys = {
    unknown: unknownKey(),
    wrongSecret: wrongSecretOf(key.id),
    badChecksum: `${unknownKey().slice(0, -6)}000000`,
  };
  const first = [await authorize(invalidKeys.unknown), await authorize(invalidKeys.wrongSecret)];
  const again = [await authorize(invalidKeys.unknown), await authorize(invalidKeys.wrongSecret)];
  for (const { work } of first) t.same(work, { reads: 1, argon2Runs: 0 });
  for (const { work } of again) t.same(work, { reads: 0, argon2Runs: 0 });
  const answers = new Set([...first, ...again, await authorize(invalidKeys.badChecksum)].map(({ answer }) => answer));
  t.equal(answers.size, 1, 'identical bytes except for the request id');
  t.match([...answers][0], '"status":401');
});
