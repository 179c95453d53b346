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

// Postgres is gone: known keys stay valid for a while, unknown ones are never valid, and everything recovers by itself.

/** A service that reaches its database through a proxy, with one key that it knows and one that it has never seen. */
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
  const known = (await service.admin.post('/v1/keys', {})).body.key as string;
  const unseen = (await service.admin.post('/v1/keys', {})).body.key as string;
  const ask = async (key: string) => {
    const startedAtMs = performance.now();
    const { status, body } = await service.verifier.post('/v1/verify', { key, permission: 'read' });
    return { answer: status === 200 ? (body.code as string) : status, tookMs: performance.now() - startedAtMs };
  };
  t.equal((await ask(known)).answer, 'valid');
  const break_ = (how: 'cut off' | 'silent') => {
    proxy.refuse(true);
    if (how === 'silent') proxy.swallow(true);
    else proxy.end();
  };
  const restore = () => {
    proxy.refuse(false);
    proxy.swallow(false);
    proxy.end();
  };
  return { service, known, unseen, ask, break_, restore };
}

for (const how of ['cut off', 'silent'] as const) {
  t.test(`Postgres ${how}: known keys from memory at once, unknown ones 503, and back within 5 s`, async (t) => {
    const { service, known, unseen, ask, break_, restore } = await startBehindProxy(t, { staleMs: 30_000 });
    const never = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal();
    break_(how);
    t.equal((await ask(known)).answer, 'valid');
    await eventually(async () => !service.verification.feed.isLive());
    await ask(known);
    t.ok(service.logLines.join('').includes('Records cannot be read'), 'and the log says so');

    const answers = await Promise.all(Array.from({ length: 50 }, () => ask(known)));
    t.ok(answers.every(({ answer }) => answer === 'valid'));
    t.ok(Math.max(...answers.map(({ tookMs }) => tookMs)) < 500, 'after one failed read nobody waits for the database');
    const refused = await Promise.all([unseen, never, unseen, never].map(ask));
    t.same(
      refused.map(({ answer }) => answer),
      [503, 503, 503, 503],
      'never a 200 for a key that is not known',
    );
    t.ok(Math.max(...refused.map(({ tookMs }) => tookMs)) < 2_500, 'the promised two seconds, and a margin');

    restore();
    await eventually(async () => (await ask(unseen)).answer === 'valid', 5_000);
    t.equal((await ask(never)).answer, 'not_found');
    await eventually(async () => service.verification.feed.isLive(), 5_000);
    t.match(service.logLines.join(''), 'Records can be read from the database again');
  });
}

t.test('known keys work for VERIFY_STALE_SECONDS and not longer', async (t) => {
  const staleMs = 1_500;
  const { known, ask, break_, restore } = await startBehindProxy(t, { staleMs });
  break_('cut off');
  const brokenAtMs = performance.now();
  let lastGoodAtMs = 0;
  await eventually(async () => {
    const { answer } = await ask(known);
    if (answer === 'valid') lastGoodAtMs = performance.now();
    return answer === 503;
  });
  t.ok(lastGoodAtMs - brokenAtMs <= staleMs + 50, 'counted from when the record was last known to be right');
  t.ok(lastGoodAtMs - brokenAtMs >= staleMs - 1_100, 'which is at most two heartbeats before the break');
  restore();
  await eventually(async () => (await ask(known)).answer === 'valid', 5_000);
});

t.test('with VERIFY_STALE_SECONDS=0 nothing is answered without Postgres', async (t) => {
  const { service, known, ask, break_ } = await startBehindProxy(t, { staleMs: 0 });
  break_('cut off');
  await eventually(async () => !service.verification.feed.isLive());
  t.equal((await ask(known)).answer, 503);
});

t.test('a key that expires while Postgres is gone has expired', async (t) => {
  const { service, ask, break_ } = await startBehindProxy(t, { staleMs: 30_000 });
  const expiresAt = new Date(service.clock.nowMs() + 1_500).toISOString();
  const { body: partner } = await service.admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const { body: key } = await service.admin.post('/v1/keys', { partnerId: partner.id, expiresAt });
  t.equal((await ask(key.key)).answer, 'valid');
  break_('cut off');
  await eventually(async () => (await ask(key.key)).answer === 'expired', 5_000);
});
