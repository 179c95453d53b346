import t from 'tap';
import type { ApiKeyRecord } from '../src/auth/api-key-record.ts';
import { newId } from '../src/core/ids.ts';
import { UseCounts } from '../src/core/use-counts.ts';
import { usageParts } from '../src/verification/recent-usage.ts';
import { type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { dbAllowed, dbWriteDown, holdRecentUsage, mergeUsage } from './support/usage.ts';

// Uses between memory and the rows of their hours.

const hourMs = 3_600_000;

t.test('a key that was changed between two uses shows the later one', async (t) => {
  const { admin, verifier, verification, urls } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const use = () => verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await admin.post(`/v1/keys/${key.id}/suspend`, {});
  const held = await holdRecentUsage(t, urls);
  t.match((await use()).body, { valid: false });
  const first = verification.usage.flush();
  await held.untilWaiting('insert');
  // These two are written together, and counted apart: by the key as it was, and as it is read anew.
  t.match((await use()).body, { valid: false });
  await admin.post(`/v1/keys/${key.id}/resume`, {});
  t.match((await use()).body, { valid: true });
  const second = verification.usage.flush();
  await held.release();
  await Promise.all([first, second]);
  const { body: usage } = await admin.get(`/v1/keys/${key.id}/usage`);
  t.match(usage.total, { allowed: 1, denied: 2 });
  t.type(usage.lastUsedAt, 'string');
  t.equal((await admin.get(`/v1/keys/${key.id}`)).body.lastUsedAt, usage.lastUsedAt);
});

t.test('of many keys, too, what was just used is written within two seconds', async (t) => {
  const { admin, verification, urls } = await startService(t);
  await admin.post('/v1/keys', {});
  const keys = Array.from({ length: 10_000 }, () => {
    const id = newId('key');
    return { id, useCounts: new UseCounts(id) } as ApiKeyRecord;
  });
  await dbQuery(
    urls.superuser,
    `insert into api_keys select (jsonb_populate_record(one, jsonb_build_object(
       'id', copy.id, 'deleted_at', now(), 'delete_reason', 'other'))).* from api_keys as one, unnest($1::text[]) as copy (id)`,
    [keys.map(({ id }) => id)],
  );
  for (const uses of [1, 2]) {
    const usedAtMs = performance.now();
    for (const key of keys) verification.usage.add(key, 'allowed');
    const written = await eventually(async () => {
      const found = await dbAllowed(urls.superuser);
      return keys.every(({ id }) => found.get(id) === uses) && found;
    });
    t.ok(performance.now() - usedAtMs < 2_000);
    t.equal(written.size, keys.length);
  }
});

t.test('what was written down is added to its hours: once, and it shows the same before and after', async (t) => {
  const { admin, verifier, verification, client, urls, later } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const { body: other } = await admin.post('/v1/keys', {});
  const keys = [...partner.keys, other];
  const use = async (times: number) => {
    for (const { key, permission } of keys) {
      const wanted = permission === 'write' ? 'write' : 'read';
      for (let turn = 0; turn < times; turn++) await verifier.post('/v1/verify', { key, permission: wanted });
    }
    await verifier.post('/v1/verify', { key: partner.keys[0].key, permission: 'write' });
    await verification.usage.flush();
  };
  const show = async () => {
    const owners = [...keys.map(({ id }: Json) => `keys/${id}`), `partners/${partner.id}`];
    const usages = await Promise.all(owners.map((owner) => admin.get(`/v1/${owner}/usage`)));
    const { body: list } = await admin.get('/v1/keys');
    const lastUses = list.data.map(({ lastUsedAt }: Json) => lastUsedAt);
    return [...usages.map(({ body: { from, to, ...usage } }) => usage), lastUses];
  };
  await use(2);
  later(hourMs);
  await use(1);
  const before = await show();
  t.match(before[0], { total: { allowed: 3, denied: 2, rateLimited: 0 }, data: [{ allowed: 2 }, { allowed: 1 }] });
  t.match(before[3], { total: { allowed: 6, denied: 2 } });
  t.equal(before[4].filter((at: unknown) => typeof at === 'string').length, 3);
  await Promise.all([mergeUsage(client.db), mergeUsage(client.db)]);
  t.same(await dbQuery(urls.superuser, 'select 1 from usage_recent'), []);
  t.same(await show(), before);
  await use(1);
  const [{ total }] = await show();
  t.match(total, { allowed: 4, denied: 3 });
  await mergeUsage(client.db);
  t.same((await show())[0].total, total);
});

t.test('what was written down of another key or another hour is not shown, though it stands beside it', async (t) => {
  const { admin, urls } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  const other = newId('key').slice(0, -1) + key.id.slice(-1);
  const hour = Math.floor(Date.now() / hourMs) * hourMs;
  await dbWriteDown(urls, hour, [other, key.id], { allowed: [5, 1], lastUsed: [1_000, 10] });
  await dbWriteDown(urls, hour - 2 * hourMs, [key.id], { allowed: [7], lastUsed: [20] });
  const lastUsedAt = new Date(hour + 10).toISOString();
  for (const owner of [`keys/${key.id}`, `partners/${partner.id}`]) {
    t.match((await admin.get(`/v1/${owner}/usage`)).body, { lastUsedAt, total: { allowed: 8 } });
    const { body: latest } = await admin.get(`/v1/${owner}/usage?from=${new Date(hour).toISOString()}`);
    t.match(latest, { lastUsedAt, total: { allowed: 1 } });
    const earlier = `from=${new Date(hour - 3 * hourMs).toISOString()}&to=${new Date(hour).toISOString()}`;
    t.match((await admin.get(`/v1/${owner}/usage?${earlier}`)).body.total, { allowed: 7 });
  }
  t.equal((await admin.get(`/v1/keys/${key.id}`)).body.lastUsedAt, lastUsedAt);
});

t.test('the last use is the latest that was allowed, in whatever order they are written down and added', async (t) => {
  const { admin, client, urls } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const hour = Math.floor(Date.now() / hourMs) * hourMs;
  const earlier = hour - 2 * hourMs;
  const show = async () => [
    (await admin.get(`/v1/keys/${key.id}/usage`)).body.lastUsedAt,
    (await admin.get(`/v1/keys/${key.id}`)).body.lastUsedAt,
  ];
  const latest = new Date(earlier + 20).toISOString();
  await dbWriteDown(urls, earlier, [key.id], { allowed: [1], lastUsed: [20] });
  await dbWriteDown(urls, earlier, [key.id], { allowed: [1], lastUsed: [10] });
  await dbWriteDown(urls, hour, [key.id], { allowed: [0], lastUsed: [-1] });
  t.same(await show(), [latest, latest]);
  await mergeUsage(client.db);
  t.same(await show(), [latest, latest]);
  await dbWriteDown(urls, earlier, [key.id], { allowed: [1], lastUsed: [15] });
  await mergeUsage(client.db);
  t.same(await show(), [latest, latest]);
});

t.test('uses are added to their hours by themselves, also those that an ended process has left', async (t) => {
  const first = await startService(t);
  const { body: key } = await first.admin.post('/v1/keys', {});
  await first.verifier.post('/v1/verify', { key: key.key, permission: 'read' });
  await first.verification.close();
  const { urls, keyring } = first;
  const left = async () => (await dbQuery(urls.superuser, 'select 1 from usage_recent')).length;
  t.equal(await left(), 1, 'it was written down before the end');
  const second = await startService(t, { urls, keyring });
  // A round takes half a minute; this is one.
  second.later(hourMs);
  await eventually(async () => (await left()) === 0);
  t.same(await dbQuery(urls.superuser, 'select key_id, allowed::int from usage_hours'), [
    { key_id: key.id, allowed: 1 },
  ]);

  await t.test('where that fails it is tried again, and nothing is lost', async (t) => {
    await dbQuery(urls.superuser, 'alter table usage_hours rename to usage_hours_away');
    await second.as(first.verifier.token).post('/v1/verify', { key: key.key, permission: 'read' });
    await second.verification.usage.flush();
    second.later(hourMs);
    await eventually(async () => second.logLines.join('').includes('Usage could not be added to its hours'));
    await dbQuery(urls.superuser, 'alter table usage_hours_away rename to usage_hours');
    second.later(hourMs);
    await eventually(async () => (await left()) === 0);
    t.equal((await dbAllowed(urls.superuser)).get(key.id), 2);
  });
});

t.test('what has gathered for long is added to its hours at once, however much it is', async (t) => {
  const { admin, urls, later } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  await dbQuery(
    urls.superuser,
    `insert into usage_recent (part, hour, key_ids, allowed, last_used)
     select right($1, 1), date_trunc('hour', now()), array[$1], '{1}', '{0}' from generate_series(1, 2500)`,
    [key.id],
  );
  later(hourMs);
  await eventually(async () => (await dbQuery(urls.superuser, 'select 1 from usage_recent')).length === 0);
  t.equal((await dbAllowed(urls.superuser)).get(key.id), 2_500);
});

t.test('the end does not wait until all is added to its hours', async (t) => {
  const { verification, urls, later } = await startService(t);
  await dbQuery(
    urls.superuser,
    `insert into usage_recent (part, hour, key_ids, last_used) select unnest($1::text[]), now(), '{}', '{}'`,
    [usageParts],
  );
  const held = await holdRecentUsage(t, urls);
  const left = async () => (await dbQuery(urls.superuser, 'select 1 from usage_recent')).length;
  const before = await left();
  later(hourMs);
  await held.untilWaiting('delete');
  const closing = verification.close();
  await held.release();
  await closing;
  t.ok((await left()) >= before - 1, 'all but the part that was on its way');
});
