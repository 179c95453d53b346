import pg from 'pg';
import type { Test } from 'tap';
import type { AccessTokenId } from '../src/domain/ids.ts';
import { announceExpiries } from '../src/expiry-notices/jobs.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { deliveriesOf, makeWebhook } from './support/webhooks.ts';

const hour = 3_600_000;
const day = 24 * hour;

const backend = { role: 'verifier', name: 'Backend', scopes: ['read'] };
const bob = { role: 'admin', name: 'Bob', email: 'bob@example.com', scopes: ['read'] };

async function newToken({ admin, as }: TestService, input: Json): Promise<{ id: string; client: Client }> {
  const { body } = await admin.post('/v1/access-tokens', input);
  return { id: body.id, client: as(body.token) };
}

/** A connection of its own, until the test ends. */
async function connect(t: Test, { urls }: TestService): Promise<pg.Client> {
  const connection = new pg.Client(urls.superuser);
  await connection.connect();
  t.teardown(() => connection.end());
  return connection;
}

async function lastUsedAt({ admin }: TestService, id: string): Promise<string | null> {
  return (await admin.get(`/v1/access-tokens/${id}`)).body.lastUsedAt;
}

t.test('a token shows when it was last accepted, within a minute', async (t) => {
  const service = await startService(t);
  const { verifier, admin } = service;
  const { body: made } = await admin.post('/v1/access-tokens', backend);
  t.equal(made.lastUsedAt, null);
  t.equal(await lastUsedAt(service, made.id), null, 'it was created, and not used');
  const before = service.clock.nowMs();
  t.equal((await service.as(made.token).post('/v1/verify', { key: 'x', permission: 'read' })).status, 200);
  const shown = await eventually(async () => (await lastUsedAt(service, made.id)) ?? false, 30_000);
  t.ok(Date.parse(shown ?? '') >= before - 1_000 && Date.parse(shown ?? '') <= service.clock.nowMs());
  const own = await admin.get('/v1/access-tokens');
  const of = ({ token }: Client) => own.body.data.find(({ id }: Json) => token.includes(id.slice('token_'.length)));
  t.equal(own.body.data.find(({ id }: Json) => id === made.id).lastUsedAt, shown, 'the list says the same');
  t.type(of(admin).lastUsedAt, 'string');
  t.equal(of(verifier).lastUsedAt, null);
});

t.test('only an accepted token counts as used, also if it lacks the scope or the role', async (t) => {
  const service = await startService(t);
  const { admin, verification, later } = service;
  const expiresAt = new Date(Date.now() + hour).toISOString();
  const { id, client } = await newToken(service, { ...bob, expiresAt });
  t.equal((await client.post('/v1/keys', {})).status, 403);
  await verification.tokenUses.flush();
  const first = await lastUsedAt(service, id);
  t.type(first, 'string');
  later(10_000);
  t.equal((await client.get('/v1/keys')).status, 200);
  await verification.tokenUses.flush();
  const second = await lastUsedAt(service, id);
  t.ok(Date.parse(second ?? '') - Date.parse(first ?? '') >= 9_000);
  later(2 * hour);
  t.equal((await client.get('/v1/keys')).status, 401, 'expired');
  const { body: deleted } = await admin.delete(`/v1/access-tokens/${id}`);
  t.equal(deleted.lastUsedAt, second);
  t.equal((await client.get('/v1/keys')).status, 401);
  await verification.tokenUses.flush();
  t.equal(await lastUsedAt(service, id), second);
});

t.test('a use is never shown in the future, and an earlier one does not replace a later one', async (t) => {
  const service = await startService(t);
  const { client, id } = await newToken(service, backend);
  const use = async () => {
    await client.post('/v1/verify', { key: 'x', permission: 'read' });
    await service.verification.tokenUses.flush();
  };
  service.clock.move(2 * hour);
  await use();
  const ahead = Date.parse((await lastUsedAt(service, id)) ?? '');
  service.clock.move(-2 * hour);
  await use();
  t.ok(Date.parse((await lastUsedAt(service, id)) ?? '') <= service.clock.nowMs());
  service.clock.move(2 * hour);
  t.ok(Date.parse((await lastUsedAt(service, id)) ?? '') >= ahead);
});

t.test('a use waits for no lock on the token, notifies no replica and drops nothing from memory', async (t) => {
  const service = await startService(t);
  const { client, id } = await newToken(service, backend);
  await client.post('/v1/verify', { key: 'x', permission: 'read' });
  await service.verification.tokenUses.flush();
  const listener = await connect(t, service);
  const notified: string[] = [];
  listener.on('notification', ({ payload = '' }) => notified.push(payload));
  await listener.query('listen latchkey_changes');
  const locker = await connect(t, service);
  await locker.query('begin');
  await locker.query('select from access_tokens where id = $1 for update', [id]);
  const known = service.verification.records.accessTokens.getFromMemory(id as AccessTokenId);
  t.ok(known);
  for (let round = 0; round < 20; round++) {
    await client.post('/v1/verify', { key: 'x', permission: 'read' });
    await service.verification.tokenUses.flush();
  }
  t.equal(service.verification.records.accessTokens.getFromMemory(id as AccessTokenId), known, 'the same copy');
  await locker.query('rollback');
  await dbQuery(service.urls.superuser, "select pg_notify('latchkey_changes', 'the end')");
  await eventually(async () => notified.includes('the end'));
  t.notOk(notified.some((payload) => payload.includes(id)));
});

t.test('the expiry of a token is announced once seven days and once one day before', async (t) => {
  const service = await startService(t);
  const { admin, operator, later } = service;
  const webhook = await makeWebhook(service, { url: 'http://127.0.0.1:9/', events: ['access_token.expiry_announced'] });
  const transactor = {
    db: service.client.db,
    keyring: service.keyring,
    clock: service.clock,
    onAppended: enqueueDeliveries,
  };
  const expiresIn = (ms: number) => new Date(Date.now() + ms).toISOString();
  const expiresAt = expiresIn(10 * day);
  const { id } = await newToken(service, { ...bob, expiresAt });
  const hurried = await newToken(service, { ...backend, expiresAt: expiresIn(hour) });
  const deleted = await newToken(service, { ...bob, expiresAt: expiresIn(hour) });
  await admin.delete(`/v1/access-tokens/${deleted.id}`);
  const { body: colleague } = await operator.post('/v1/access-tokens', {
    role: 'operator',
    name: 'Olga',
    scopes: ['read'],
    expiresAt,
  });
  const announced = async (to: Client) =>
    (await to.get('/v1/history?action=access_token.expiry_announced')).body.data.map(({ details }: Json) => [
      details.accessTokenId,
      details.daysLeft,
    ]);

  t.equal(await announceExpiries({ transactor }), 1);
  t.same(await announced(admin), [[hurried.id, 1]], 'a token that lives one hour is announced once');
  later(3 * day);
  await Promise.all(Array.from({ length: 4 }, () => announceExpiries({ transactor })));
  t.same((await announced(admin))[0], [id, 7]);
  t.same(await announced(operator), [[colleague.id, 7]], "an operator's token, in the installation's history");
  later(6 * day);
  for (const _ of [1, 2]) await announceExpiries({ transactor });
  t.same(await announced(admin), [
    [id, 1],
    [id, 7],
    [hurried.id, 1],
  ]);
  t.same(await announced(operator), [
    [colleague.id, 1],
    [colleague.id, 7],
  ]);
  later(2 * day);
  t.equal(await announceExpiries({ transactor }), 0, 'expired tokens are not announced');

  const { body: history } = await admin.get('/v1/history?action=access_token.expiry_announced&limit=1');
  t.match(history.data[0], {
    actor: { type: 'system', id: 'announce_expiries' },
    keyId: null,
    request: null,
    details: { accessTokenId: id, role: 'admin', name: 'Bob', email: 'bob@example.com', expiresAt, daysLeft: 1 },
  });
  t.equal((await deliveriesOf(service, webhook)).length, 3, 'a delivery for each of the organization');
  for (const client of [admin, operator]) t.match((await client.get('/v1/history/verify')).body, { valid: true });
});
