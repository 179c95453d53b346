import { monitorEventLoopDelay } from 'node:perf_hooks';
import { createDatabaseClock } from '../src/database/clock.ts';
import { newId } from '../src/domain/ids.ts';
import type { ApiKeyRecord } from '../src/verification/api-key-record.ts';
import { addUsage, foldOldUsage } from '../src/verification/usage-store.ts';
import { type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually, request } from './support/process.ts';
import { serve } from './support/served.ts';
import { t } from './support/tap.ts';
import { dbAllowed, holdUsage } from './support/usage.ts';

const hourMs = 3_600_000;
const dayMs = 24 * hourMs;

t.test('each outcome is counted, and shown within ten seconds', async (t) => {
  const service = await startService(t);
  const { admin, verifier, as } = service;
  const { body: partner } = await admin.post('/v1/partners', {
    email: 'p@p.example',
    permissions: ['read'],
    rateLimit: { requests: 3, windowSeconds: 60 },
  });
  const [key] = partner.keys;
  const verify = (more = {}) => verifier.post('/v1/verify', { key: key.key, permission: 'read', ...more });
  const before = Date.now();
  for (let call = 0; call < 5; call++) await verify();
  await verify({ permission: 'write' });
  await verify({ cost: 0 });
  await verify({ cost: 0, permission: 'write' });
  const askedAtMs = performance.now();
  const { body: usage } = await eventually(async () => {
    const reply = await admin.get(`/v1/keys/${key.id}/usage`);
    return reply.body.total.rateLimited === 2 && reply;
  });
  t.ok(performance.now() - askedAtMs < 10_000);
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

  await t.test('calls by gateways and by keys themselves count as uses', async (t) => {
    await admin.patch(`/v1/partners/${partner.id}`, { rateLimit: null });
    const headers = { 'x-latchkey-token': verifier.token, 'x-forwarded-method': 'GET' };
    t.equal((await as(key.key).get('/v1/authorize', headers)).status, 200);
    await service.verification.usage.flush();
    t.equal((await admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed, 4);
  });

  await t.test('counting changes neither the cached record nor the history of a key', async (t) => {
    const { body: history } = await admin.get(`/v1/keys/${key.id}/history`);
    t.same(
      history.data.map((event: Json) => event.action),
      ['key.created'],
    );
  });
});

t.test("a partner's usage continues over rotations and includes deleted keys", async (t) => {
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
  const input = { role: 'verifier', scopes: ['read'], name: 'For all' };
  const { body: token } = await a.operator.post('/v1/access-tokens', input);
  const { body: key } = await a.admin.post('/v1/keys', {});
  const question = { key: key.key, permission: 'read' };
  for (let round = 0; round < 10; round++) {
    for (const replica of [a, b]) await replica.as(token.token).post('/v1/verify', question);
    await Promise.all([a.verification.usage.flush(), b.verification.usage.flush()]);
  }
  t.equal((await a.admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed, 20);
});

t.test('the time range has defaults, and invalid ranges are rejected', async (t) => {
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
  t.match((await usage('')).body, { total: { allowed: 1 } }, 'a day by default');
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

t.test('the range is widened to whole periods, and the reply names it', async (t) => {
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
    t.same(ofKey.body, ofPartner.body, `usage of the partner: ${query}`);
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
  t.equal(Date.parse(to) - Date.parse(from), dayMs, 'the default is a day');
  t.ok(Date.parse(to) % hourMs === 0 && Date.parse(to) >= Date.now() - 1_000, to);
});

t.test('hours are aggregated into days, and nothing is lost or counted twice', async (t) => {
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
  // A batch ends within a day, so each day is folded in parts.
  const aggregate = () =>
    foldOldUsage({ db: client.db, clock: createDatabaseClock() }, { hourlyDays: 5, batchSize: 7 });
  const aggregated = await Promise.all([aggregate(), aggregate()]);
  t.equal(aggregated[0] + aggregated[1], 120, 'once, although two runs began');
  const { from, to, ...after } = await read();
  t.match(before, after);
  const [rows] = await dbQuery(
    urls.superuser,
    'select (select count(*)::int from usage_hours) as hours, (select count(*)::int from usage_days) as days',
  );
  t.same(rows, { hours: 120, days: 5 });
  t.equal(await aggregate(), 0);
});

t.test('a service that stops ends the aggregation between two batches, and totals stay the same', async (t) => {
  const { admin, client, urls, organizationId } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const today = Math.floor(Date.now() / dayMs) * dayMs;
  await dbQuery(
    urls.superuser,
    `insert into usage_hours select $1, null, $2, hour, 1, 2, 3
     from generate_series($3::timestamptz, $4::timestamptz, interval '1 hour') as hour`,
    [organizationId, key.id, new Date(today - 10 * dayMs).toISOString(), new Date(today - hourMs).toISOString()],
  );
  const stopping = new AbortController();
  const clock = createDatabaseClock();
  const fold = foldOldUsage({ db: client.db, clock }, { hourlyDays: 5, batchSize: 30, signal: stopping.signal });
  stopping.abort();
  const folded = await fold;
  t.ok([0, 30].includes(folded), `${folded} hours`);
  t.equal(await foldOldUsage({ db: client.db, clock }, { hourlyDays: 5, batchSize: 30 }), 120 - folded);
  const { body } = await admin.get(`/v1/keys/${key.id}/usage?granularity=day`);
  t.match(body.total, { allowed: 240, denied: 480, rateLimited: 720 });
});

t.test('if the database rejects a write, no count is lost', async (t) => {
  const { admin, verifier, verification, urls, logLines } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  await dbQuery(urls.superuser, 'alter table usage_hours rename to usage_hours_away');
  for (let call = 0; call < 3; call++) await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await verification.usage.flush();
  t.match(logLines.join(''), 'Usage: not written. Latchkey will retry.');
  await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await dbQuery(urls.superuser, 'alter table usage_hours_away rename to usage_hours');
  await verification.usage.flush();
  t.equal((await admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed, 4);
});

t.test('uses of a key that is read again each time are counted together', async (t) => {
  const { admin, verifier, verification, urls, logLines } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  await dbQuery(urls.superuser, 'alter table usage_hours rename to usage_hours_away');
  const fresh = { 'cache-control': 'no-cache' };
  for (let call = 0; call < 20; call++) await verifier.post('/v1/verify', { key: key.key, permission: 'read' }, fresh);
  await verification.usage.flush();
  const [waiting] = logLines.filter((line) => line.includes('Usage: not written')).map((line) => JSON.parse(line));
  t.equal(waiting.rows, 1);
  await dbQuery(urls.superuser, 'alter table usage_hours_away rename to usage_hours');
  await verification.usage.flush();
  t.equal((await admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed, 20);
});

t.test('uses before the end of an hour are written to that hour, even if written later', async (t) => {
  const { admin, verifier, verification, clock, urls, later } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  const { body: secondKey } = await admin.post('/v1/keys', {});
  const use = async (used: Json, times: number, permission = 'read') => {
    for (let call = 0; call < times; call++) await verifier.post('/v1/verify', { key: used.key, permission });
  };
  await dbQuery(urls.superuser, 'alter table usage_hours rename to usage_hours_away');
  await use(key, 3);
  await use(key, 1, 'write');
  later(hourMs);
  await use(key, 2);
  await verification.usage.flush();
  later(hourMs);
  await use(secondKey, 1);
  await use(key, 4);
  await dbQuery(urls.superuser, 'alter table usage_hours_away rename to usage_hours');
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
  t.same(await outcomes(secondKey), [[1, 0]]);
  const { body: usage } = await admin.get(`/v1/keys/${key.id}/usage`);
  t.ok(Math.abs(Date.parse(usage.lastUsedAt) - clock.nowMs()) < 60_000, usage.lastUsedAt);
});

t.test('if the hour ends while its counts are written and the write fails, they stay in that hour', async (t) => {
  const { admin, verifier, verification, urls, later } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const use = () => verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  const held = await holdUsage(t, urls);
  await use();
  const flushing = verification.usage.flush();
  await held.untilWaiting();
  later(hourMs);
  await use();
  await use();
  await held.endWaiting();
  await held.release();
  await flushing;
  // The next flush may get the connection that has just failed, and fail too.
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

t.test('a flush writes all earlier counts, even while an earlier flush is running', async (t) => {
  const { admin, verifier, verification, urls } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const use = () => verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  const held = await holdUsage(t, urls);
  await use();
  const first = verification.usage.flush();
  await held.untilWaiting();
  await use();
  const second = verification.usage.flush();
  await held.release();
  await Promise.all([first, second]);
  t.equal((await admin.get(`/v1/keys/${key.id}/usage`)).body.total.allowed, 2);
});

t.test('a key that was changed between two uses has the later state, and both uses are counted', async (t) => {
  const { admin, verifier, verification, urls } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const use = () => verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await admin.post(`/v1/keys/${key.id}/suspend`, {});
  const held = await holdUsage(t, urls);
  t.match((await use()).body, { valid: false });
  const first = verification.usage.flush();
  await held.untilWaiting();
  t.match((await use()).body, { valid: false });
  await held.release();
  t.match((await admin.post(`/v1/keys/${key.id}/resume`, {})).body, { lastUsedAt: null });
  t.match((await use()).body, { valid: true });
  await Promise.all([first, verification.usage.flush()]);
  const { body: usage } = await admin.get(`/v1/keys/${key.id}/usage`);
  t.match(usage.total, { allowed: 1, denied: 2 });
  t.type(usage.lastUsedAt, 'string');
});

t.test('every reply with a key has the time of its last use', async (t) => {
  const { admin, verifier, verification } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  t.equal(key.lastUsedAt, null);
  await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await verification.usage.flush();
  const { lastUsedAt } = (await admin.get(`/v1/keys/${key.id}/usage`)).body;
  const path = `/v1/keys/${key.id}`;
  const shown = {
    get: await admin.get(path),
    'a patch': await admin.patch(path, { name: 'Other' }),
    'a patch that changes nothing': await admin.patch(path, { name: 'Other' }),
    suspend: await admin.post(`${path}/suspend`),
    'suspend again': await admin.post(`${path}/suspend`),
    resume: await admin.post(`${path}/resume`),
    delete: await admin.delete(path),
    restore: await admin.post(`${path}/restore`),
  };
  for (const [what, { status, body }] of Object.entries(shown)) {
    t.same([status, body.lastUsedAt], [200, lastUsedAt], what);
  }
  const { body: next } = await admin.post(`${path}/rotate`);
  t.equal(next.lastUsedAt, null, 'the new key was not used');
  const last = async () => (await admin.get('/v1/keys')).body.data.map((shown: Json) => shown.lastUsedAt);
  t.same(await last(), [null, lastUsedAt]);
});

t.test('the last use is the latest allowed one, in whatever order hours are written and aggregated', async (t) => {
  const { admin, client, urls } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  const hour = Math.floor(Date.now() / hourMs) * hourMs;
  const write = (hour: number, lastUsedAt: number | null) =>
    addUsage(client.db, [
      {
        organizationId: key.organizationId,
        partnerId: partner.id,
        keyId: key.id,
        hour,
        allowed: lastUsedAt === null ? 0 : 1,
        denied: 1,
        rateLimited: 0,
        afterDeletion: 0,
        lastUsedAt,
      },
    ]);
  const lastUsedAtOf = async () =>
    Promise.all(
      [`keys/${key.id}/usage`, `partners/${partner.id}/usage`, `keys/${key.id}`].map(
        async (path) => (await admin.get(`/v1/${path}`)).body.lastUsedAt,
      ),
    );
  const earlier = hour - 50 * dayMs;
  await write(earlier - dayMs, earlier - dayMs + 7);
  await write(earlier, earlier + 20);
  await write(earlier, earlier + 10);
  await write(earlier, null);
  await write(hour, null);
  const latest = new Date(earlier + 20).toISOString();
  t.same(await lastUsedAtOf(), [latest, latest, latest]);
  t.equal(await foldOldUsage({ db: client.db, clock: createDatabaseClock() }, { hourlyDays: 35 }), 2);
  t.same(await lastUsedAtOf(), [latest, latest, latest]);
  await write(hour - 2 * hourMs, hour - hourMs - 5);
  await write(hour - hourMs, hour - 5);
  const later = new Date(hour - 5).toISOString();
  t.same(await lastUsedAtOf(), [later, later, later]);
  t.same(await dbQuery(urls.superuser, 'select allowed::int, denied::int from usage_days order by day'), [
    { allowed: 1, denied: 1 },
    { allowed: 2, denied: 3 },
  ]);
});

t.test('uses of 10,000 keys are written once, within ten seconds', async (t) => {
  const { admin, verification, urls } = await startService(t);
  const { body: shown } = await admin.post('/v1/keys', {});
  const keys = Array.from({ length: 10_000 }, () => {
    return { id: newId('key'), organization_id: shown.organizationId, partner_id: null } as ApiKeyRecord;
  });
  for (const key of keys) verification.usage.add(key, 'allowed');
  await verification.usage.flush();
  for (const key of keys) verification.usage.add(key, 'allowed');
  const usedAtMs = performance.now();
  const counts = () => dbQuery(urls.superuser, 'select allowed::int, count(*)::int from usage_hours group by 1');
  await eventually(async () => (await counts())[0]?.['allowed'] === 2 && (await counts()).length === 1);
  t.ok(performance.now() - usedAtMs < 10_000);
  t.same(await counts(), [{ allowed: 2, count: keys.length }]);
});

t.test('replicas that write the same rows in opposite orders wait for each other without an error', async (t) => {
  const a = await startService(t);
  const b = await startService(t, { urls: a.urls, keyring: a.keyring });
  const keys = Array.from({ length: 2_000 }, () => {
    return { id: newId('key'), organization_id: a.organizationId, partner_id: null } as ApiKeyRecord;
  });
  for (let round = 0; round < 5; round++) {
    for (const key of keys) a.verification.usage.add(key, 'allowed');
    for (const key of keys.toReversed()) b.verification.usage.add(key, 'allowed');
    await Promise.all([a, b].map(({ verification }) => verification.usage.flush()));
  }
  const counts = await dbQuery(a.urls.superuser, 'select allowed::int, count(*)::int from usage_hours group by 1');
  t.same(counts, [{ allowed: 10, count: keys.length }]);
  t.notMatch([...a.logLines, ...b.logLines].join(''), 'Usage: not written');
});

t.test('a killed process loses only the uses of its last seconds', async (t) => {
  const { process: killed, url, urls, tokens } = await serve(t);
  const send = (path: string, token: string | undefined, body: unknown) =>
    request(`${url}${path}`, { method: 'POST', token: token ?? '', body });
  const { body: key } = await send('/v1/keys', tokens['adminToken'], {});
  const verify = () => send('/v1/verify', tokens['verifierToken'], { key: key.key, permission: 'read' });
  await Promise.all(Array.from({ length: 25 }, verify));
  const countedAtMs = performance.now();
  await eventually(async () => (await dbAllowed(urls.superuser)).get(key.id) === 25);
  t.ok(performance.now() - countedAtMs < 10_000);
  await verify();
  killed.child.kill('SIGKILL');
  await killed.exited;
  t.ok(((await dbAllowed(urls.superuser)).get(key.id) ?? 0) >= 25);
});

t.test('closing writes what was counted since the last flush', async (t) => {
  const { admin, verifier, verification, urls } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  await verification.usage.flush();
  await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await verification.close();
  t.same(await dbAllowed(urls.superuser), new Map([[key.id, 1]]));
});

t.test('closing writes the uses of 100,000 keys without blocking the event loop', async (t) => {
  const { organizationId, verification, urls } = await startService(t);
  for (let used = 0; used < 100_000; used++) {
    const key = { id: newId('key'), organization_id: organizationId, partner_id: null } as ApiKeyRecord;
    verification.usage.add(key, 'allowed');
  }
  const delays = monitorEventLoopDelay({ resolution: 5 });
  delays.enable();
  await verification.close();
  delays.disable();
  const counts = await dbQuery(urls.superuser, 'select sum(allowed)::int as allowed, count(*)::int from usage_hours');
  t.same(counts, [{ allowed: 100_000, count: 100_000 }]);
  t.ok(delays.max < 500e6, `the event loop was late by ${(delays.max / 1e6).toFixed(0)} ms at most`);
});

t.test('after SIGTERM all counted uses are written before the process ends', async (t) => {
  const { process: service, url, urls, tokens } = await serve(t);
  const send = (path: string, token: string | undefined, body: unknown) =>
    request(`${url}${path}`, { method: 'POST', token: token ?? '', body });
  const { body: key } = await send('/v1/keys', tokens['adminToken'], {});
  const question = { key: key.key, permission: 'read' };
  await Promise.all(Array.from({ length: 25 }, () => send('/v1/verify', tokens['verifierToken'], question)));
  service.child.kill('SIGTERM');
  t.same(await service.exited, { code: 0, signal: null });
  t.same(await dbAllowed(urls.superuser), new Map([[key.id, 25]]));
});

t.test('after a clock two hours ahead was set back, no time is later than now', async (t) => {
  const { admin, verifier, verification, clock, later } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  const { body: deletedKey } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${deletedKey.id}`);
  const now = () => new Date(clock.nowMs()).toISOString();
  later(7_200_000);
  const verify = ({ key: text }: { key: string }) => verifier.post('/v1/verify', { key: text, permission: 'read' });
  t.equal((await verify(key)).body.code, 'valid');
  t.equal((await verify(deletedKey)).body.code, 'deleted');
  later(-7_200_000);
  await verification.usage.flush();
  const shown = {
    key: (await admin.get(`/v1/keys/${key.id}`)).body.lastUsedAt,
    list: (await admin.get('/v1/keys')).body.data.find(({ id }: { id: string }) => id === key.id).lastUsedAt,
    usage: (await admin.get(`/v1/keys/${key.id}/usage`)).body.lastUsedAt,
    'usage of the partner': (await admin.get(`/v1/partners/${partner.id}/usage`)).body.lastUsedAt,
    'a use after deletion': (await admin.get(`/v1/keys/${deletedKey.id}/history?limit=1`)).body.data[0].details
      .presentedAt,
  };
  for (const [what, at] of Object.entries(shown)) t.ok(at !== null && at <= now(), `${what}: ${at}`);
});
