import t from 'tap';
import { generateKeyring } from '../src/crypto/keyring.ts';
import { foldOldUsage } from '../src/verification/usage-store.ts';
import { type Json, startService } from './support/app.ts';
import { createDatabase, dbQuery } from './support/database.ts';
import { eventually, request, runEntry } from './support/process.ts';
import { dbAllowed, holdRecentUsage } from './support/usage.ts';

const hourMs = 3_600_000;
const dayMs = 24 * hourMs;

t.test('each outcome is counted, and shows within two seconds', async (t) => {
  const service = await startService(t);
  const { admin, verifier, as } = service;
  const { body: partner } = await admin.post('/v1/partners', {
    email: 'p@p.example',
    permissions: ['read'],
    rateLimit: { requests: 3, windowSeconds: 60 },
  });
  const [key] = partner.keys;
  const ask = (more = {}) => verifier.post('/v1/verify', { key: key.key, permission: 'read', ...more });
  const before = Date.now();
  for (let turn = 0; turn < 5; turn++) await ask();
  await ask({ permission: 'write' });
  await ask({ cost: 0 });
  await ask({ cost: 0, permission: 'write' });
  const askedAtMs = performance.now();
  const { body: usage } = await eventually(async () => {
    const reply = await admin.get(`/v1/keys/${key.id}/usage`);
    return reply.body.total.rateLimited === 2 && reply;
  });
  t.ok(performance.now() - askedAtMs < 2_000);
  t.match(usage, {
    granularity: 'hour',
    total: { allowed: 3, denied: 1, rateLimited: 2 },
    data: [{ allowed: 3, denied: 1, rateLimited: 2 }],
  });
  t.match(usage.data[0].start, /:00:00\.000Z$/);
  const lastUsedAt = Date.parse(usage.lastUsedAt);
  t.ok(lastUsedAt >= before - 1_000 && lastUsedAt <= Date.now() + 1_000);
  for (const view of [
    (await admin.get(`/v1/keys/${key.id}`)).body,
    (await admin.get('/v1/keys')).body.data[0],
    (await admin.get('/v1/rows')).body.data[1].keys[0],
  ]) {
    t.equal(view.lastUsedAt, usage.lastUsedAt);
  }

  await t.test('what gateways and keys themselves ask is use, too', async (t) => {
    await admin.patch(`/v1/partners/${partner.id}`, { rateLimit: null });
    const headers = { 'x-latchkey-token': verifier.token, 'x-forwarded-method': 'GET' };
    t.equal((await as(key.key).get('/v1/authorize', headers)).status, 200);
    await eventually(async () => (await admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed === 4);
  });

  await t.test('counting touches no key: its record stays in memory, its history as it was', async (t) => {
    const { body: history } = await admin.get(`/v1/keys/${key.id}/history`);
    t.same(
      history.data.map((event: Json) => event.action),
      ['key.created'],
    );
  });
});

t.test("a partner's use goes on over rotations, and counts keys that were deleted", async (t) => {
  const { admin, verifier, verification } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const [old, writing] = partner.keys;
  const use = (key: Json, permission: string) => verifier.post('/v1/verify', { key: key.key, permission });
  await use(old, 'read');
  const { body: next } = await admin.post('/v1/keys', { partnerId: partner.id, permission: 'read' });
  await use(next, 'read');
  await admin.delete(`/v1/keys/${old.id}?reason=rotated`);
  await use(old, 'read');
  await use(writing, 'write');
  await verification.usage.flush();
  const { body: usage } = await admin.get(`/v1/partners/${partner.id}/usage?granularity=day`);
  t.match(usage, { granularity: 'day', total: { allowed: 3, denied: 1 }, data: [{ allowed: 3, denied: 1 }] });
  t.ok(usage.lastUsedAt);
  const { body: ofOld } = await admin.get(`/v1/keys/${old.id}/usage`);
  t.match(ofOld.total, { allowed: 1, denied: 1 });
  await admin.delete(`/v1/partners/${partner.id}`);
  t.match((await admin.get(`/v1/partners/${partner.id}/usage`)).body.total, { allowed: 3, denied: 1 });
});

t.test('two replicas add to the same count', async (t) => {
  const a = await startService(t);
  const { urls, keyring } = a;
  const b = await startService(t, { urls, keyring });
  const wish = { role: 'verifier', scopes: ['read'], name: 'For all' };
  const { body: token } = await a.operator.post('/v1/access-tokens', wish);
  const { body: key } = await a.admin.post('/v1/keys', {});
  const question = { key: key.key, permission: 'read' };
  for (let round = 0; round < 10; round++) {
    for (const replica of [a, b]) await replica.as(token.token).post('/v1/verify', question);
    await Promise.all([a.verification.usage.flush(), b.verification.usage.flush()]);
  }
  t.equal((await a.admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed, 20);
});

t.test('the range: its defaults, and what is wrong with others', async (t) => {
  const { admin, verifier, verification, urls, organizationId } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await verification.usage.flush();
  const old = new Date(Date.now() - 26 * hourMs);
  await dbQuery(
    urls.superuser,
    "insert into usage_hours select $1, null, $2, date_trunc('hour', $3::timestamptz, 'UTC'), 7, 0, 0",
    [organizationId, key.id, old.toISOString()],
  );
  const usage = async (query: string) => admin.get(`/v1/keys/${key.id}/usage${query}`);
  t.match((await usage('')).body, { total: { allowed: 1 } }, 'a day where nothing is said');
  t.match((await usage('?granularity=day')).body, { total: { allowed: 8 } }, '30 days');
  const from = new Date(Date.now() - 3 * dayMs).toISOString();
  const wide = (await usage(`?from=${from}`)).body;
  t.match(wide, { total: { allowed: 8 }, data: [{ allowed: 7 }, { allowed: 1 }] }, 'oldest first');
  for (const [query, path] of [
    [`?from=${new Date(Date.now() + hourMs).toISOString()}`, 'query.from'],
    [`?from=${from}&to=${from}`, 'query.from'],
    [`?from=${new Date(Date.now() - 32 * dayMs).toISOString()}`, 'query.from'],
    [`?from=${new Date(Date.now() - 367 * dayMs).toISOString()}&granularity=day`, 'query.from'],
    ['?from=yesterday', 'query.from'],
    ['?granularity=minute', 'query.granularity'],
    ['?more=1', 'query.more'],
  ] as const) {
    const { status, body } = await usage(query);
    t.same([status, body.code, body.errors?.[0].path], [400, 'validation_failed', path], query);
  }
});

t.test('the range is widened to whole periods, and the reply says so', async (t) => {
  const { admin, urls, organizationId } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'a@example.com', permissions: ['read'] });
  const key = partner.keys[0];
  const add = (table: string, start: string) =>
    dbQuery(urls.superuser, `insert into ${table} values ($1, $2, $3, $4, 7, 0, 0)`, [
      organizationId,
      partner.id,
      key.id,
      start,
    ]);
  await add('usage_hours', '2026-03-05T10:00:00Z');
  await add('usage_hours', '2026-03-05T11:00:00Z');
  await add('usage_days', '2026-03-03T00:00:00Z');
  const counted = async (query: string) => {
    const [ofKey, ofPartner] = [
      await admin.get(`/v1/keys/${key.id}/usage?${query}`),
      await admin.get(`/v1/partners/${partner.id}/usage?${query}`),
    ];
    t.same(ofKey.body, ofPartner.body, `a partner's usage by the same rule: ${query}`);
    const { from, to, total } = ofKey.body;
    return [from, to, total?.allowed];
  };
  const hours = (from: string, to: string) => [`2026-03-05T${from}:00.000Z`, `2026-03-05T${to}:00.000Z`];
  t.same(await counted('from=2026-03-05T10:20:00Z&to=2026-03-05T10:40:00Z'), [...hours('10:00', '11:00'), 7]);
  t.same(await counted('from=2026-03-05T10:59:59.999Z&to=2026-03-05T11:00:00.001Z'), [...hours('10:00', '12:00'), 14]);
  t.same(await counted('from=2026-03-05T10:00:00Z&to=2026-03-05T11:00:00Z'), [...hours('10:00', '11:00'), 7]);
  t.same(
    await counted('from=2026-03-05T15:50:00%2B05:30&to=2026-03-05T16:10:00%2B05:30'),
    [...hours('10:00', '11:00'), 7],
    'an offset of half an hour',
  );
  t.same(await counted('granularity=day&from=2026-03-03T23:00:00Z&to=2026-03-05T00:30:00Z'), [
    '2026-03-03T00:00:00.000Z',
    '2026-03-06T00:00:00.000Z',
    21,
  ]);
  const [from, to] = await counted('');
  t.equal(Date.parse(to) - Date.parse(from), dayMs, 'where nothing is said it is a day');
  t.ok(Date.parse(to) % hourMs === 0 && Date.parse(to) >= Date.now() - 1_000, to);
});

t.test('old hours become days, and nothing is lost or counted twice', async (t) => {
  const { admin, client, urls, organizationId } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const today = Math.floor(Date.now() / dayMs) * dayMs;
  await dbQuery(
    urls.superuser,
    `insert into usage_hours select $1, null, $2, hour, 1, 2, 3
     from generate_series($3::timestamptz, $4::timestamptz, interval '1 hour') as hour`,
    [organizationId, key.id, new Date(today - 10 * dayMs).toISOString(), new Date(today - hourMs).toISOString()],
  );
  const read = async () => (await admin.get(`/v1/keys/${key.id}/usage?granularity=day`)).body;
  const before = await read();
  t.match(before.total, { allowed: 240, denied: 480, rateLimited: 720 });
  t.equal(before.data.length, 10);
  const fold = () => foldOldUsage({ db: client.db, clockShiftMs: () => 0 }, 5);
  const folded = await Promise.all([fold(), fold()]);
  t.equal(folded[0] + folded[1], 120, 'once, though two began');
  const { from, to, ...after } = await read();
  t.match(before, after);
  const [rows] = await dbQuery(
    urls.superuser,
    'select (select count(*)::int from usage_hours) as hours, (select count(*)::int from usage_days) as days',
  );
  t.same(rows, { hours: 120, days: 5 });
  t.equal(await fold(), 0);
});

t.test('a database that does not take it loses no count', async (t) => {
  const { admin, verifier, verification, urls, logLines } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  await dbQuery(urls.superuser, 'alter table usage_recent rename to usage_recent_away');
  for (let turn = 0; turn < 3; turn++) await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await verification.usage.flush();
  t.match(logLines.join(''), 'Usage: not written, kept for the next time.');
  await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await dbQuery(urls.superuser, 'alter table usage_recent_away rename to usage_recent');
  await verification.usage.flush();
  t.equal((await admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed, 4);
});

t.test('a key that is read anew for each use is counted as one', async (t) => {
  const { admin, verifier, verification, urls, logLines } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  await dbQuery(urls.superuser, 'alter table usage_recent rename to usage_recent_away');
  const fresh = { 'cache-control': 'no-cache' };
  for (let turn = 0; turn < 20; turn++) await verifier.post('/v1/verify', { key: key.key, permission: 'read' }, fresh);
  await verification.usage.flush();
  const [waiting] = logLines.filter((line) => line.includes('Usage: not written')).map((line) => JSON.parse(line));
  t.equal(waiting.rows, 1);
  await dbQuery(urls.superuser, 'alter table usage_recent_away rename to usage_recent');
  await verification.usage.flush();
  t.equal((await admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed, 20);
});

t.test('what was counted before an hour ended is written to that hour, also when it is written later', async (t) => {
  const { admin, verifier, verification, urls, later } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  const { body: seldom } = await admin.post('/v1/keys', {});
  const use = async (used: Json, times: number, permission = 'read') => {
    for (let turn = 0; turn < times; turn++) await verifier.post('/v1/verify', { key: used.key, permission });
  };
  await dbQuery(urls.superuser, 'alter table usage_recent rename to usage_recent_away');
  await use(key, 3);
  await use(key, 1, 'write');
  later(hourMs);
  await use(key, 2);
  await verification.usage.flush();
  later(hourMs);
  await use(seldom, 1);
  await use(key, 4);
  await dbQuery(urls.superuser, 'alter table usage_recent_away rename to usage_recent');
  await verification.usage.flush();
  const outcomes = async ({ id }: Json) =>
    (await admin.get(`/v1/keys/${id}/usage?granularity=hour`)).body.data.map((period: Json) => [
      period.allowed,
      period.denied,
    ]);
  t.same(await outcomes(key), [
    [3, 1],
    [2, 0],
    [4, 0],
  ]);
  t.same(await outcomes(seldom), [[1, 0]]);
  const { body: usage } = await admin.get(`/v1/keys/${key.id}/usage`);
  t.ok(Math.abs(Date.parse(usage.lastUsedAt) - verification.clock.nowMs()) < 60_000, usage.lastUsedAt);
});

t.test('an hour ends while its counts are being written, and the writing fails: they stay in that hour', async (t) => {
  const { admin, verifier, verification, urls, later } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const use = () => verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  const held = await holdRecentUsage(t, urls);
  await use();
  const flushing = verification.usage.flush();
  await held.untilWaiting('insert');
  later(hourMs);
  await use();
  await use();
  await held.endWaiting('insert');
  await held.release();
  await flushing;
  // The next one may be given the connection that has just died, and fail, too.
  const hours = await eventually(async () => {
    await verification.usage.flush();
    const { body: usage } = await admin.get(`/v1/keys/${key.id}/usage?granularity=hour`);
    return usage.data.length > 0 && usage.data;
  });
  t.same(
    hours.map(({ allowed }: Json) => allowed),
    [1, 2],
  );
});

t.test('a flush writes what was counted before it, also while less than that is being written', async (t) => {
  const { admin, verifier, verification, urls } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const use = () => verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  const held = await holdRecentUsage(t, urls);
  await use();
  const first = verification.usage.flush();
  await held.untilWaiting('insert');
  await use();
  const second = verification.usage.flush();
  await held.release();
  await Promise.all([first, second]);
  t.equal((await admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed, 2);
});

t.test('SIGTERM: what was counted is written before the process ends', async (t) => {
  const urls = await createDatabase(t);
  const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: generateKeyring(new Date()), PORT: '0' };
  const bootstrap = runEntry(
    t,
    'cli/latchkey.ts',
    ['bootstrap', '--organization', 'A', '--admin-email', 'a@b.example'],
    {
      env,
    },
  );
  await bootstrap.exited;
  const tokens = JSON.parse(bootstrap.stdout()) as Record<string, string>;
  const service = runEntry(t, 'server.ts', [], { env });
  const [, url] = await service.until(/Server listening at (http:\/\/[^"]+)"/);
  const { body: key } = await request(`${url}/v1/keys`, {
    method: 'POST',
    token: tokens['adminToken'] ?? '',
    body: {},
  });
  const question = { key: key.key, permission: 'read' };
  const verify = () =>
    request(`${url}/v1/verify`, { method: 'POST', token: tokens['verifierToken'] ?? '', body: question });
  await Promise.all(Array.from({ length: 25 }, verify));
  service.child.kill('SIGTERM');
  t.same(await service.exited, { code: 0, signal: null });
  t.same(await dbAllowed(urls.superuser), new Map([[key.id, 25]]));
});

t.test('a clock that was two hours ahead and is set back leaves no time later than now', async (t) => {
  const { admin, verifier, verification, later } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  const { body: gone } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${gone.id}`);
  const now = () => new Date(verification.clock.nowMs()).toISOString();
  later(7_200_000);
  const ask = ({ key: text }: { key: string }) => verifier.post('/v1/verify', { key: text, permission: 'read' });
  t.equal((await ask(key)).body.code, 'valid');
  t.equal((await ask(gone)).body.code, 'deleted');
  later(-7_200_000);
  await verification.usage.flush();
  const shown = {
    key: (await admin.get(`/v1/keys/${key.id}`)).body.lastUsedAt,
    list: (await admin.get('/v1/keys')).body.data.find(({ id }: { id: string }) => id === key.id).lastUsedAt,
    usage: (await admin.get(`/v1/keys/${key.id}/usage`)).body.lastUsedAt,
    'usage of the partner': (await admin.get(`/v1/partners/${partner.id}/usage`)).body.lastUsedAt,
    'a use after deletion': (await admin.get(`/v1/keys/${gone.id}/history?limit=1`)).body.data[0].details.presentedAt,
  };
  for (const [what, at] of Object.entries(shown)) t.ok(at !== null && at <= now(), `${what}: ${at}`);
});
