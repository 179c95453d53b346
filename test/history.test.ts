import { createHash } from 'node:crypto';
import type { Test } from 'tap';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbAddEvents, dbTamper } from './support/histories.ts';
import { t } from './support/tap.ts';

async function startWithHistory(t: Test): Promise<{
  service: TestService;
  key: Json;
  partner: Json;
}> {
  const service = await startService(t);
  const { admin } = service;
  const { body: key } = await admin.post(
    '/v1/keys',
    { name: 'Kept' },
    { 'user-agent': 'story/1.0', 'x-request-id': 'r-1' },
  );
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  await admin.patch(`/v1/keys/${key.id}`, { metadata: { ünï: 'çødé', n: 1e21, nested: { b: 1, a: [true, null] } } });
  await admin.delete(`/v1/keys/${key.id}?reason=rotated`);
  return { service, key, partner };
}

t.test('an event records who did what, when, to which resource and through which request', async (t) => {
  const { service, key } = await startWithHistory(t);
  const { body } = await service.admin.get(`/v1/keys/${key.id}/history`);
  const [event] = body.data.filter((item: Json) => item.action === 'key.created');
  t.match(event, {
    id: /^event_/,
    organizationId: service.organizationId,
    actor: { type: 'admin', id: /^token_/, name: 'First admin', email: 'ada@example.com' },
    keyId: key.id,
    partnerId: null,
    request: { id: 'r-1', ip: '127.0.0.1', userAgent: 'story/1.0' },
    details: { name: 'Kept', permission: 'read_write' },
  });
  t.ok(Math.abs(Date.parse(event.at) - Date.now()) < 60_000);
  t.match(event.at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
});

t.test('history can be filtered and paged', async (t) => {
  const { service, key, partner } = await startWithHistory(t);
  const { admin } = service;
  const list = async (query: string) => (await admin.get(`/v1/history?limit=200&${query}`)).body.data as Json[];
  const all = await list('');
  const actionsOf = (events: Json[]) => events.map((event) => event.action);
  t.same(actionsOf(await list(`keyId=${key.id}`)), ['key.deleted', 'key.updated', 'key.created']);
  t.same(actionsOf(await list(`partnerId=${partner.id}`)), ['key.created', 'partner.created']);
  t.same(actionsOf(await list('action=key.updated')), ['key.updated']);
  const byAdmin = all.filter((event) => event.actor.type === 'admin');
  t.same(await list(`actorId=${byAdmin[0].actor.id}`), byAdmin);
  t.same((await list('actorId=bootstrap')).length, all.length - byAdmin.length);
  const middle = all[2];
  t.same(
    await list(`from=${middle.at}`),
    all.filter((event) => event.at >= middle.at),
    'from is inclusive',
  );
  t.same(
    await list(`to=${middle.at}`),
    all.filter((event) => event.at < middle.at),
    'to is exclusive',
  );
  t.same(await list(`from=${encodeURIComponent('2020-01-01T00:00:00+02:00')}&action=key.created&keyId=${key.id}`), [
    all.find((event) => event.action === 'key.created' && event.keyId === key.id),
  ]);

  const paged: Json[] = [];
  for (let cursor = ''; ; ) {
    const { body } = await admin.get(`/v1/history?limit=2${cursor}`);
    paged.push(...body.data);
    if (body.nextCursor === null) break;
    cursor = `&cursor=${body.nextCursor}`;
  }
  t.same(paged, all);
  for (const query of ['keyId=nonsense', 'action=key.eaten', 'from=yesterday', 'to=2026-13-01T00:00:00Z', 'who=me']) {
    const { status, body } = await admin.get(`/v1/history?${query}`);
    t.equal(status, 400, query);
    t.equal(body.errors[0].path, `query.${query.split('=')[0]}`);
  }
});

t.test("the chain can be recomputed from the API's replies", async (t) => {
  const { service } = await startWithHistory(t);
  const { body } = await service.admin.get('/v1/history?limit=200');
  let previous = Buffer.alloc(32);
  for (const { previousHash, hash, ...event } of body.data.toReversed()) {
    t.equal(previousHash, previous.toString('hex'));
    previous = createHash('sha256').update(previous).update(sortedJson(event)).digest();
    t.equal(hash, previous.toString('hex'), event.action);
  }
});

/** RFC 8785 for values of events: sorted members; JSON.stringify writes numbers and strings. */
function sortedJson(value: Json): string {
  if (Array.isArray(value)) return `[${value.map(sortedJson).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const members = Object.keys(value)
    .sort()
    .map((name) => `${JSON.stringify(name)}:${sortedJson(value[name])}`);
  return `{${members.join(',')}}`;
}

t.test('verification names the position at which a chain was changed', async (t) => {
  const edits: Array<[what: string, sql: string, firstBad: number]> = [
    ['an edit', `update history set canonical = replace(canonical, 'rotated', 'unused') where sequence = 8`, 8],
    ['an edited column', `update history set actor_id = 'token_x' where sequence = 5`, 5],
    ['a deletion', 'delete from history where sequence = 6', 6],
    ['a cut tail', 'delete from history where sequence >= 7', 7],
    [
      'a swap',
      `update history set sequence = case sequence when 5 then -6 else -5 end where sequence in (5, 6);
      update history set sequence = -sequence where sequence < 0`,
      5,
    ],
    ['a forged hash', `update history set hash = sha256('x') where sequence = 4`, 4],
  ];
  for (const [what, sql, firstBad] of edits) {
    await t.test(what, async (t) => {
      const { service } = await startWithHistory(t);
      t.match((await service.admin.get('/v1/history/verify')).body, { valid: true, events: 8, firstBadSequence: null });
      await dbTamper(
        service.urls.superuser,
        `alter table history drop constraint history_sequence_positive;
         ${sql.replaceAll('where', `where chain = '${service.organizationId}' and`)}`,
      );
      const { body } = await service.admin.get('/v1/history/verify?full=true');
      t.match(body, { valid: false, events: firstBad - 1, firstBadSequence: firstBad });
    });
  }
});

t.test('no role can alter history', async (t) => {
  const { service } = await startWithHistory(t);
  const { urls } = service;
  const role = new URL(urls.owner).username;
  const before = await dbQuery(urls.superuser, 'select * from history order by chain, sequence');
  const asService = [
    "update history set canonical = 'x'",
    'delete from history',
    'truncate history',
    `merge into history h using (select 1) s on true when matched then delete`,
    `insert into history select chain, sequence + 100, id || 'x', at, action, actor_id, key_id, partner_id, canonical, previous_hash, hash from history`,
    `insert into history select * from history on conflict (id) do update set canonical = 'x'`,
    'copy history from stdin',
    'alter table history disable trigger history_append_only',
    'alter table history disable trigger all',
    'create rule r as on insert to history do instead nothing',
    'drop trigger history_append_only on history',
    'drop table history',
    'drop function history_append(text, text) cascade',
    `create or replace function history_refuse_change() returns trigger language plpgsql as 'begin return null; end'`,
    'set session_replication_role = replica; delete from history',
    `set role ${role}; delete from history`,
    'update history_heads set sequence = 0',
    'delete from history_heads',
    'alter table history owner to current_user',
    'begin; lock table history in access exclusive mode',
    'with gone as (delete from history returning 1) select * from gone',
    'select * from history for update',
    'select * from history for key share',
    'alter table history enable replica trigger history_append_only',
    'alter table history set unlogged',
    'alter table history add column more text',
    'alter table history drop constraint history_sequence_positive',
    'create trigger t before insert on history for each row execute function history_refuse_change()',
    'create policy p on history using (false)',
    `alter function history_append(text, text) security invoker`,
    `create or replace function history_append(p_chain text, p_canonical text) returns void language sql as 'select 1'`,
    "grant update on history to current_user; update history set canonical = 'x'",
    "insert into history_heads select 'installation', 0, sha256('x'), now() on conflict (chain) do update set sequence = 0",
    'create table public.shadow (like history)',
    'set session authorization default; reset role; truncate history cascade',
  ];
  for (const sql of asService) {
    await t.rejects(dbQuery(urls.app, sql), { code: /^(42501|42809|0LP01|22023)$/ }, `as the service: ${sql}`);
  }
  const asOwner = [
    "update history set canonical = 'x'",
    'delete from history',
    'delete from history where sequence = 1',
    'truncate history',
    'truncate history cascade',
    `merge into history h using (select 1) s on true when matched then delete`,
    `merge into history h using (select 1) s on true when matched then update set canonical = 'x'`,
    `insert into history select * from history on conflict (id) do update set canonical = 'x'`,
    'with gone as (delete from history returning 1) select * from gone',
  ];
  for (const sql of asOwner) {
    await t.rejects(dbQuery(urls.owner, sql), { code: '42501' }, `as the owner: ${sql}`);
    const replica = `set session_replication_role = replica; ${sql}`;
    await t.rejects(dbQuery(urls.superuser, replica), { code: '42501' }, `as a superuser that skips triggers: ${sql}`);
  }
  t.same(await dbQuery(urls.superuser, 'select * from history order by chain, sequence'), before);
});

t.test('history_append accepts only the next valid event', async (t) => {
  const { service } = await startWithHistory(t);
  const { urls, organizationId } = service;
  const [head] = await dbQuery(urls.app, 'select sequence::int from history_heads where chain = $1', [organizationId]);
  const event = (change: Record<string, unknown>) =>
    JSON.stringify({
      id: `event_${Math.random()}`,
      organizationId,
      sequence: Number(head?.['sequence']) + 1,
      at: new Date().toISOString(),
      action: 'key.created',
      actor: { id: 'x' },
      ...change,
    });
  const append = (canonical: string, chain = organizationId) =>
    dbQuery(urls.app, 'select history_append($1, $2)', [chain, canonical]);
  const minutes = (count: number) => new Date(Date.now() + count * 60_000).toISOString();
  for (const change of [
    { sequence: Number(head?.['sequence']) },
    { sequence: Number(head?.['sequence']) + 2 },
    { at: minutes(-2) },
    { at: minutes(2) },
    { organizationId: null },
  ]) {
    await t.rejects(append(event(change)), { code: '23514' }, JSON.stringify(change));
  }
  await t.rejects(append(event({}), 'installation'), { code: '23514' });
  t.match((await service.admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('a change that cannot be recorded does not take place', async (t) => {
  const { service, partner } = await startWithHistory(t);
  const { admin, urls } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const before = await admin.get('/v1/history?limit=200');
  await dbQuery(urls.owner, `revoke execute on function history_append(text, text) from ${new URL(urls.app).username}`);

  const refused = [
    await admin.post(`/v1/keys/${key.id}/reveal`),
    await admin.post('/v1/keys', {}),
    await admin.patch(`/v1/keys/${key.id}`, { name: 'x' }),
    await admin.delete(`/v1/keys/${key.id}`),
    await admin.post('/v1/partners', { email: 'q@p.example', permissions: ['read'] }),
    await admin.delete(`/v1/partners/${partner.id}`),
    await admin.put('/v1/rate-limit', { requests: 1, windowSeconds: 1 }),
    await admin.post('/v1/access-tokens', { role: 'verifier', name: 'v', scopes: ['read'] }),
  ];
  for (const { status, headers, body } of refused) {
    t.equal(status, 503);
    t.equal(headers['retry-after'], '1');
    t.same(
      Object.keys(body),
      ['type', 'title', 'status', 'detail', 'code', 'requestId', 'traceId'],
      'the body is an ordinary problem',
    );
  }
  t.equal((await admin.get('/v1/keys')).status, 200, 'reads continue');
  t.equal((await service.verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code, 'valid');

  await dbQuery(urls.owner, `grant execute on function history_append(text, text) to ${new URL(urls.app).username}`);
  t.same((await admin.get('/v1/history?limit=200')).body, before.body);
  t.equal((await admin.get(`/v1/keys/${key.id}`)).body.name, null);
  t.equal((await admin.get('/v1/partners')).body.data.length, 1);
  t.equal((await admin.get(`/v1/partners/${partner.id}`)).body.status, 'active');
  t.equal((await admin.get('/v1/rate-limit')).body.requests, 1_000);
  t.equal((await admin.post(`/v1/keys/${key.id}/reveal`)).status, 200);
});

t.test('a clock that was set back stops no writer, and times in the chain never decrease', async (t) => {
  const service = await startService(t);
  await dbQuery(service.urls.superuser, "update history_heads set at = at + interval '10 minutes'");
  const [last] = (await service.admin.get('/v1/history?limit=1')).body.data;
  t.equal((await service.admin.post('/v1/keys', {})).status, 201);
  const [event] = (await service.admin.get('/v1/history?limit=1')).body.data;
  t.ok(Date.parse(event.at) - Date.parse(last.at) >= 600_000);
  t.match((await service.admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('a page of large events ends early, and the next page continues without a gap', async (t) => {
  const service = await startService(t);
  const { admin, urls, organizationId } = service;
  await dbAddEvents(urls.superuser, organizationId, 60, () => ({ reason: 'x'.repeat(30_000) }));
  const sequences: number[] = [];
  let pages = 0;
  for (let cursor: string | null = ''; cursor !== null; pages++) {
    const { body } = await admin.get(`/v1/history?limit=200${cursor === '' ? '' : `&cursor=${cursor}`}`);
    t.ok(JSON.stringify(body).length < 600_000, 'half a MiB of texts');
    sequences.push(...body.data.map(({ sequence }: { sequence: number }) => sequence));
    cursor = body.nextCursor;
  }
  t.ok(pages > 3, `${pages} pages`);
  t.same(
    sequences,
    sequences.map((_, index) => sequences.length - index),
  );
  t.ok(sequences.length > 60);
});
