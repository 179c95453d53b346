import type { Test } from 'tap';
import { connect } from '../src/database/client.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { proxyTo } from './support/proxy.ts';
import { dbSessions } from './support/sessions.ts';
import { t } from './support/tap.ts';

// A key deleted on one replica is rejected by the others, even if notifications are lost.

/** A verifier for all organizations, because each service creates an organization of its own. */
async function verifierForAll({ operator, as }: TestService) {
  const { body } = await operator.post('/v1/access-tokens', { role: 'verifier', scopes: ['read'], name: 'For all' });
  return as(body.token);
}

async function twoReplicas(t: Test, listenUrl?: string) {
  const a = await startService(t);
  const { urls, keyring } = a;
  const b = await startService(t, { urls, keyring, ...(listenUrl === undefined ? {} : { state: { listenUrl } }) });
  const token = (await verifierForAll(a)).token;
  const verify = async (service: TestService, key: string) => {
    const { body } = await service.as(token).post('/v1/verify', { key, permission: 'read' });
    return body.code as string;
  };
  const isLive = async () => b.verification.feed.isLive() && a.verification.feed.isLive();
  await eventually(isLive);
  return { a, b, verify };
}

t.test(
  'a key deleted on one replica is rejected by the other within a second in all of 100 runs, mostly within 100 ms',
  async (t) => {
    const { a, b, verify } = await twoReplicas(t);
    const delaysMs: number[] = [];
    for (let round = 0; round < 100; round++) {
      const { body: key } = await a.admin.post('/v1/keys', {});
      t.equal(await verify(b, key.key), 'valid');
      await a.admin.delete(`/v1/keys/${key.id}`);
      const deletedAtMs = performance.now();
      t.equal(await verify(a, key.key), 'deleted', 'immediately on the replica that deleted it');
      while ((await verify(b, key.key)) === 'valid' && performance.now() - deletedAtMs < 1_000);
      delaysMs.push(performance.now() - deletedAtMs);
    }
    for (const delayMs of delaysMs) t.ok(delayMs < 1_000, `${delayMs} ms`);
    const prompt = delaysMs.filter((delayMs) => delayMs < 100);
    t.ok(prompt.length > 50, `${prompt.length} of 100 within 100 ms`);
  },
);

t.test('any change that affects a verdict is followed, including changes by SQL', async (t) => {
  const { a, b, verify } = await twoReplicas(t);
  const { body: partner } = await a.admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  const follows = (code: string) => eventually(async () => (await verify(b, key.key)) === code, 1_000);
  await follows('valid');
  const changeBySql = (sql: string) => dbQuery(a.urls.superuser, sql);
  await changeBySql('update partners set suspended_at = now()');
  await follows('partner_suspended');
  await changeBySql('update partners set suspended_at = null');
  await follows('valid');
  await changeBySql('update organizations set rate_limit_requests = 1');
  await follows('rate_limited');
  await a.admin.put('/v1/rate-limit', { requests: 1_000, windowSeconds: 60 });
  await follows('valid');
  await changeBySql('update api_keys set suspended_at = now()');
  await follows('suspended');
  await changeBySql('update api_keys set suspended_at = null');
  await follows('valid');
  await a.admin.delete(`/v1/partners/${partner.id}`);
  await follows('deleted');
  await changeBySql('truncate api_keys cascade');
  await follows('not_found');
});

t.test('a revoked access token is rejected by every replica', async (t) => {
  const { a, b } = await twoReplicas(t);
  const input = { role: 'verifier', scopes: ['read'], name: 'Soon revoked' };
  const { body: token } = await a.operator.post('/v1/access-tokens', input);
  t.equal((await b.as(token.token).get('/v1/self')).status, 200);
  await a.operator.delete(`/v1/access-tokens/${token.id}`);
  await eventually(async () => (await b.as(token.token).get('/v1/self')).status === 401, 1_000);
});

for (const [what, cut] of [
  ['swallowed', 'swallow'],
  ['cut off', 'end'],
] as const) {
  t.test(`notifications ${what}: within 3 s no verdict comes from memory, and the feed recovers`, async (t) => {
    const urls = await createDatabase(t);
    const proxy = await proxyTo(t, urls.app);
    const service = await startService(t, { urls, state: { listenUrl: proxy.url } });
    const { feed } = service.verification;
    await eventually(async () => feed.isLive());
    const { body: key } = await service.admin.post('/v1/keys', {});
    const verify = async () =>
      (await service.verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code as string;
    t.equal(await verify(), 'valid');

    const cutAtMs = performance.now();
    proxy.refuse(true);
    if (cut === 'swallow') proxy.swallow(true);
    else proxy.end();
    await dbQuery(urls.superuser, 'update api_keys set suspended_at = now()');
    await eventually(async () => !feed.isLive());
    t.ok(performance.now() - cutAtMs < 3_000, 'the heartbeat has noticed');
    t.equal(await verify(), 'suspended', 'the change without a notification is noticed');
    await dbQuery(urls.superuser, 'update api_keys set suspended_at = null');
    t.equal(await verify(), 'valid', 'each verdict is read from the database');
    await dbQuery(urls.superuser, 'update api_keys set suspended_at = now()');

    proxy.swallow(false);
    proxy.refuse(false);
    proxy.end();
    await eventually(async () => feed.isLive(), 5_000);
    t.equal(await verify(), 'suspended', 'the cache was emptied before it is used again');
    const logText = service.logLines.join('');
    t.match(logText, 'The change feed is disconnected');
    t.match(logText, 'The change feed is connected');
  });
}

for (const [what, change, code] of [
  ['a key', 'update api_keys set suspended_at = now()', 'suspended'],
  ["a key's partner", 'update partners set suspended_at = now()', 'partner_suspended'],
  ["a key's organization", 'update organizations set rate_limit_requests = 1', 'cost_exceeds_limit'],
  ['everything', 'truncate api_keys cascade', 'not_found'],
] as const) {
  t.test(`${what} changed while it is read: the older state is neither returned nor cached`, async (t) => {
    const urls = await createDatabase(t);
    const proxy = await proxyTo(t, urls.app);
    const client = connect({ url: proxy.url, poolSize: 4 });
    t.teardown(() => client.close());
    const transactor = { db: client.db, clock: createDatabaseClock() };
    const { admin, verifier, verification } = await startService(t, { urls, transactor });
    await eventually(async () => verification.feed.isLive());
    const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
    const input = { key: partner.keys[0].key, permission: 'read', cost: 2 };
    const verify = async () => (await verifier.post('/v1/verify', input)).body.code as string;
    await verifier.get('/v1/self');

    let notified = 0;
    verification.feed.subscribe({
      changed: (id) => {
        if (!id.startsWith('beat')) notified += 1;
      },
      restarted: () => {
        notified += 1;
      },
    });
    proxy.hold(true);
    const pendingCode = verify();
    await eventually(async () => {
      const readers = await dbSessions(
        urls.superuser,
        "application_name = 'latchkey' and query like '%api_keys%' and state = 'idle'",
      );
      return readers.length > 0;
    });
    await dbQuery(urls.superuser, change);
    await eventually(async () => notified > 0);
    proxy.hold(false);
    t.equal(await pendingCode, code, 'the query began before the change, so it is repeated');
    t.equal(await verify(), code);
  });
}

t.test(
  'with more keys than the cache holds, verdicts are right before and after a change of their organization',
  async (t) => {
    const { admin, verifier, verification } = await startService(t, { state: { capacity: 3 } });
    await eventually(async () => verification.feed.isLive());
    const keys: Json[] = [];
    for (let number = 0; number < 8; number++) {
      const { body } = await admin.post('/v1/partners', { email: `p${number}@p.example`, permissions: ['read'] });
      keys.push(body.keys[0]);
    }
    const verifyAll = () =>
      Promise.all(keys.map(async ({ key }) => (await verifier.post('/v1/verify', { key, permission: 'read' })).body));
    for (const requests of [1_000, 500, 2_000]) {
      await admin.put('/v1/rate-limit', { requests, windowSeconds: 60 });
      for (let round = 0; round < 3; round++) {
        t.ok((await verifyAll()).every(({ code, rateLimit }) => code === 'valid' && rateLimit.limit === requests));
      }
    }
    const [first, ...others] = keys;
    await admin.delete(`/v1/keys/${first.id}`);
    t.same(
      (await verifyAll()).map(({ code }) => code),
      ['deleted', ...others.map(() => 'valid')],
    );
  },
);
