import type { Test } from 'tap';
import { mintToken } from '../src/crypto/token.ts';
import { connect } from '../src/database/client.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import type { VerificationStateOptions } from '../src/verification/state.ts';
import { startService } from './support/app.ts';
import { createDatabase } from './support/database.ts';
import { eventually } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { t } from './support/tap.ts';

/** A service that reaches its database through a proxy, with one cached key and one unknown key. */
async function startBehindProxy(t: Test, state: Partial<VerificationStateOptions>) {
  const urls = await createDatabase(t);
  const proxy = await proxyTo(t, urls.app);
  const client = connect({ url: proxy.url, poolSize: 4, timeoutMs: 1_500 });
  t.teardown(() => client.close());
  const service = await startService(t, {
    urls,
    transactor: { db: client.db, clock: createDatabaseClock() },
    state: { listenUrl: proxy.url, ...state },
  });
  await eventually(async () => service.verification.feed.isLive());
  const cachedKey = (await service.admin.post('/v1/keys', {})).body.key as string;
  const uncachedKey = (await service.admin.post('/v1/keys', {})).body.key as string;
  const verify = async (key: string) => {
    const startedAtMs = performance.now();
    const { status, body } = await service.verifier.post('/v1/verify', { key, permission: 'read' });
    return { answer: status === 200 ? (body.code as string) : status, tookMs: performance.now() - startedAtMs };
  };
  t.equal((await verify(cachedKey)).answer, 'valid');
  const breakDatabase = (how: 'cut off' | 'silent') => {
    proxy.refuse(true);
    if (how === 'silent') proxy.swallow(true);
    else proxy.end();
  };
  const restore = () => {
    proxy.refuse(false);
    proxy.swallow(false);
    proxy.end();
  };
  return { service, cachedKey, uncachedKey, verify, breakDatabase, restore };
}

for (const how of ['cut off', 'silent'] as const) {
  t.test(
    `if Postgres ${how}, cached keys are verified at once, others get 503, and it recovers within 5 s`,
    async (t) => {
      const { service, cachedKey, uncachedKey, verify, breakDatabase, restore } = await startBehindProxy(t, {
        staleMs: 30_000,
      });
      const unknownKey = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal();
      breakDatabase(how);
      t.equal((await verify(cachedKey)).answer, 'valid');
      await eventually(async () => !service.verification.feed.isLive());
      await verify(cachedKey);
      t.ok(service.logLines.join('').includes('Records cannot be read'), 'the log reports it');

      const answers = await Promise.all(Array.from({ length: 50 }, () => verify(cachedKey)));
      t.ok(answers.every(({ answer }) => answer === 'valid'));
      t.ok(
        Math.max(...answers.map(({ tookMs }) => tookMs)) < 500,
        'after one failed read no call waits for the database',
      );
      const refused = await Promise.all([uncachedKey, unknownKey, uncachedKey, unknownKey].map(verify));
      t.same(
        refused.map(({ answer }) => answer),
        [503, 503, 503, 503],
        'a key that is not cached never gets 200',
      );
      t.ok(Math.max(...refused.map(({ tookMs }) => tookMs)) < 2_500, 'two seconds, plus a margin');

      restore();
      await eventually(async () => (await verify(uncachedKey)).answer === 'valid', 5_000);
      t.equal((await verify(unknownKey)).answer, 'not_found');
      await eventually(async () => service.verification.feed.isLive(), 5_000);
      t.match(service.logLines.join(''), 'Records can be read from the database again');
    },
  );
}

t.test('cached keys are valid for VERIFY_STALE_SECONDS and no longer', async (t) => {
  const staleMs = 1_500;
  const { cachedKey, verify, breakDatabase, restore } = await startBehindProxy(t, { staleMs });
  breakDatabase('cut off');
  const brokenAtMs = performance.now();
  let lastGoodAtMs = 0;
  await eventually(async () => {
    const { answer } = await verify(cachedKey);
    if (answer === 'valid') lastGoodAtMs = performance.now();
    return answer === 503;
  });
  t.ok(lastGoodAtMs - brokenAtMs <= staleMs + 50, 'counted from the last confirmation of the record');
  t.ok(lastGoodAtMs - brokenAtMs >= staleMs - 1_100, 'the confirmation is at most two heartbeats before the break');
  restore();
  await eventually(async () => (await verify(cachedKey)).answer === 'valid', 5_000);
});

t.test('with VERIFY_STALE_SECONDS=0 no key is verified without Postgres', async (t) => {
  const { service, cachedKey, verify, breakDatabase } = await startBehindProxy(t, { staleMs: 0 });
  breakDatabase('cut off');
  await eventually(async () => !service.verification.feed.isLive());
  t.equal((await verify(cachedKey)).answer, 503);
});

t.test('a key that expires while Postgres is unavailable is rejected', async (t) => {
  const { service, verify, breakDatabase } = await startBehindProxy(t, { staleMs: 30_000 });
  const expiresAt = new Date(service.clock.nowMs() + 1_500).toISOString();
  const { body: partner } = await service.admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const { body: key } = await service.admin.post('/v1/keys', { partnerId: partner.id, expiresAt });
  t.equal((await verify(key.key)).answer, 'valid');
  breakDatabase('cut off');
  await eventually(async () => (await verify(key.key)).answer === 'expired', 5_000);
});
