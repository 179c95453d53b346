import { parseKeyring } from '../src/crypto/keyring.ts';
import { mintToken } from '../src/crypto/token.ts';
import { idSuffix, type KeyId, newId } from '../src/domain/ids.ts';
import { purgeDeletedKeys } from '../src/keys/purge-job.ts';
import { placesInDay } from '../src/leaks/policy.ts';
import { pruneLeakReports } from '../src/leaks/store.ts';
import { type Json, type Reply, startService, type TestService } from './support/app.ts';
import { foreignToken, sha256Of } from './support/imports.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { readMetrics } from './support/metrics.ts';
import { t } from './support/tap.ts';
import { bodiesFor, makeWebhook } from './support/webhooks.ts';

type Reporter = Pick<TestService, 'app'>;

async function report({ app }: Reporter, body: Json, headers: Record<string, string> = {}): Promise<Reply> {
  const response = await app.inject({ method: 'POST', url: '/v1/leaks', payload: body, headers });
  return { status: response.statusCode, headers: response.headers, body: response.json() };
}

const wrongSecretOf = (id: KeyId) => mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(id) }).reveal();
const unknownKey = () => wrongSecretOf(newId('key'));

const leakActions = ['key.leak_reported', 'key.suspended', 'key.deleted'];

/** What reports left in history, oldest first. */
async function leftBy({ admin }: Pick<TestService, 'admin'>, keyId?: string): Promise<Json[]> {
  const { body } = await admin.get(`/v1/history?limit=200${keyId === undefined ? '' : `&keyId=${keyId}`}`);
  return body.data.filter(({ action }: Json) => leakActions.includes(action)).reverse();
}

const actionsOf = (events: Json[]) => events.map(({ action }) => action);

const place = { source: 'gitleaks', url: 'https://git.example/app/config.yml', note: 'In the first commit' };

t.test('a report of a live key is recorded with its place and its reporter, and never with the key', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const headers = { 'user-agent': 'a finder', 'x-request-id': 'report-1' };
  const reply = await report(service, { key: key.key, ...place }, headers);
  t.match(reply, { status: 202, body: {} });
  const [event, ...more] = await leftBy(service);
  t.same(more, []);
  t.match(event, {
    action: 'key.leak_reported',
    keyId: key.id,
    partnerId: null,
    actor: { type: 'system', id: 'leak_report', name: 'leak report', email: null },
    request: { id: 'report-1', ip: '127.0.0.1', userAgent: 'a finder' },
    details: { ...place, action: 'notify' },
  });
  t.notOk(JSON.stringify(event).includes(key.key));
  t.equal((await admin.get(`/v1/keys/${key.id}`)).body.status, 'active', 'notify changes no key');
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('white space around a reported key does not matter: who pastes a line reports the key in it', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  await admin.patch('/v1/organization', { leakResponse: 'suspend' });
  const { body: key } = await admin.post('/v1/keys', {});
  t.match(await report(service, { key: ` ${key.key}\r\n` }), { status: 202 });
  t.same(actionsOf(await leftBy(service, key.id)), ['key.leak_reported', 'key.suspended']);
  t.match(await report(service, { key: `\t${key.key}`, url: `https://git.example/?q=${key.key}` }), {
    status: 400,
    body: { code: 'secret_in_text' },
  });
});

t.test('leakResponse is notify by default, and a change of it is recorded', async (t) => {
  const { admin, operator, organizationId } = await startService(t);
  t.equal((await admin.get('/v1/organization')).body.leakResponse, 'notify');
  t.equal((await admin.patch('/v1/organization', { leakResponse: 'suspend' })).body.leakResponse, 'suspend');
  const { body } = await operator.patch(`/v1/organizations/${organizationId}`, { leakResponse: 'revoke' });
  t.equal(body.leakResponse, 'revoke');
  t.match((await admin.get('/v1/history?limit=1')).body.data[0], {
    action: 'organization.updated',
    details: { changes: { leakResponse: { from: 'suspend', to: 'revoke' } } },
  });
  t.match(await admin.patch('/v1/organization', { leakResponse: 'delete' }), {
    status: 400,
    body: { code: 'validation_failed' },
  });
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('suspend suspends the key and revoke deletes it as compromised, in the transaction of the event', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  for (const [leakResponse, actions, status, code] of [
    ['suspend', ['key.leak_reported', 'key.suspended'], 'suspended', 'suspended'],
    ['revoke', ['key.leak_reported', 'key.deleted'], 'deleted', 'deleted'],
  ] as const) {
    await admin.patch('/v1/organization', { leakResponse });
    const { body: key } = await admin.post('/v1/keys', {});
    const verify = async () => (await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code;
    t.equal(await verify(), 'valid');
    await report(service, { key: key.key, ...place });
    t.equal(await verify(), code, 'this replica rejects the key from the reply on');
    const events = await leftBy(service, key.id);
    t.same(actionsOf(events), actions);
    t.match(events[0].details, { action: leakResponse });
    const { body: now } = await admin.get(`/v1/keys/${key.id}`);
    t.equal(now.status, status);
    if (leakResponse === 'revoke') t.match(events[1].details, { reason: 'compromised' });
    await report(service, { key: key.key, url: 'https://elsewhere.example/' });
    t.equal((await leftBy(service, key.id)).filter(({ action }) => action !== 'key.leak_reported').length, 1, 'once');
  }
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('suspended, expired and restorable keys are reported too; compromised and purged ones are not', async (t) => {
  const service = await startService(t);
  const { admin, client, clock } = service;
  const partner = async () =>
    (await admin.post('/v1/partners', { email: `${Math.random()}@p.example`, permissions: ['read'] })).body.keys[0];
  const [suspended, expired, deleted, kept, compromised, purged] = await Promise.all(
    Array.from({ length: 6 }, partner),
  );
  await admin.delete(`/v1/keys/${purged.id}`);
  service.later(29 * 86_400_000);
  await admin.patch(`/v1/keys/${expired.id}`, { expiresAt: new Date(clock.nowMs() + 60_000).toISOString() });
  await admin.post(`/v1/keys/${suspended.id}/suspend`);
  await admin.delete(`/v1/keys/${kept.id}`);
  service.later(2 * 86_400_000);
  await admin.delete(`/v1/keys/${deleted.id}`);
  await admin.delete(`/v1/keys/${compromised.id}?reason=compromised`);
  const { db } = client;
  const transactor = { db, keyring: service.keyring, clock, onAppended: async () => undefined };
  t.equal(await purgeDeletedKeys({ transactor, retentionSeconds: 2_592_000 }), 1);
  const before = (await leftBy(service)).length;
  for (const { key } of [suspended, expired, deleted, kept, compromised, purged]) await report(service, { key });
  const events = (await leftBy(service)).slice(before);
  t.same(
    events.map(({ keyId }) => keyId),
    [suspended, expired, deleted, kept].map(({ id }) => id),
    'kept can be restored by an operator only',
  );
});

t.test('a deleted key that leaked does not work after it is restored', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  for (const [leakResponse, restored] of [
    ['suspend', { status: 200, body: { status: 'suspended' } }],
    ['revoke', { status: 409, body: { code: 'not_restorable' } }],
  ] as const) {
    await admin.patch('/v1/organization', { leakResponse });
    const { body: key } = await admin.post('/v1/keys', {});
    await admin.delete(`/v1/keys/${key.id}`);
    await report(service, { key: key.key });
    t.match(await admin.post(`/v1/keys/${key.id}/restore`), restored, leakResponse);
  }
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});

t.test('every text gets the same reply, byte for byte but for the request id', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const make = async () => (await admin.post('/v1/keys', {})).body;
  const [live, deleted] = [await make(), await make()];
  await admin.delete(`/v1/keys/${deleted.id}`);
  const revoked = await make();
  await admin.delete(`/v1/keys/${revoked.id}?reason=compromised`);
  const texts: Array<[what: string, key: string]> = [
    ['live', live.key],
    ['live, again', live.key],
    ['deleted', deleted.key],
    ['compromised', revoked.key],
    ['wrong secret', wrongSecretOf(live.id)],
    ['unknown', unknownKey()],
    ['wrong checksum', `${live.key.slice(0, -1)}!`],
    ['an access token', verifier.token],
    ['any text', 'password123'],
    ['no text', ''],
  ];
  const raw = async (key: string) => {
    const response = await service.app.inject({ method: 'POST', url: '/v1/leaks', payload: { key } });
    const { 'x-request-id': id, date: _, ...headers } = response.headers;
    t.ok(id);
    return JSON.stringify([response.statusCode, headers, response.body]).replaceAll(String(id), '');
  };
  const replies = await Promise.all(texts.map(([, key]) => raw(key)));
  for (const [index, [what]] of texts.entries()) t.equal(replies[index], replies[0], what);
  t.match(replies[0], /^\[202/);
});

t.test('the time of the reply does not show what the key is', async (t) => {
  const service = await startService(t, { publicLimit: 1_000_000 });
  const { admin } = service;
  await admin.patch('/v1/organization', { leakResponse: 'suspend' });
  const rounds = 12;
  const partner = async () =>
    (await admin.post('/v1/partners', { email: `${Math.random()}@p.example`, permissions: ['read'] })).body.keys[0];
  const times: Record<string, number[]> = { live: [], wrong: [], unknown: [], malformed: [], deleted: [] };
  for (let round = 0; round < rounds; round++) {
    const [live, deleted] = [await partner(), await partner()];
    await admin.delete(`/v1/keys/${deleted.id}`);
    const keys = {
      live: live.key,
      deleted: deleted.key,
      wrong: wrongSecretOf(live.id),
      unknown: unknownKey(),
      malformed: 'no key',
    };
    // One after the other, so that no request waits for the work of another.
    for (const [what, key] of Object.entries(keys)) {
      const startedMs = performance.now();
      await report(service, { key });
      times[what]?.push(performance.now() - startedMs);
    }
  }
  const median = (of: number[]) => of.toSorted((one, other) => one - other)[rounds / 2] ?? 0;
  const medians = Object.fromEntries(Object.entries(times).map(([what, of]) => [what, median(of)]));
  // The work itself takes a few milliseconds to some hundred, depending on the key and the machine.
  t.ok(Object.values(times).every((of) => of.every((ms) => ms > 245)));
  for (const [what, ms] of Object.entries(medians)) {
    t.ok(Math.abs(ms - (medians['unknown'] ?? 0)) < 75, `${what}: ${ms} ms, unknown: ${medians['unknown']} ms`);
  }
});

t.test(
  'a key reported a thousand times a minute from many addresses: no argon2id run, one event, one suspension',
  async (t) => {
    const service = await startService(t, { trustProxy: ['127.0.0.1'] });
    const { admin, app, hasher, client } = service;
    await admin.patch('/v1/organization', { leakResponse: 'suspend' });
    const { body: key } = await admin.post('/v1/keys', {});
    const runs = hasher.runs;
    let connections = 0;
    client.pool.on('acquire', () => {
      connections += 1;
    });
    const statuses = await Promise.all(
      Array.from({ length: 1_000 }, async (_, index) => {
        const address = `198.51.${Math.floor(index / 250)}.${1 + (index % 250)}`;
        return (await report({ app }, { key: key.key, ...place }, { 'x-forwarded-for': address })).status;
      }),
    );
    t.ok(statuses.every((status) => status === 202));
    t.equal(hasher.runs, runs);
    t.ok(connections < 50, `${connections} uses of a connection`);
    t.same(actionsOf(await leftBy(service)), ['key.leak_reported', 'key.suspended']);
    const metrics = readMetrics((await app.inject({ url: '/metrics' })).body);
    t.equal(metrics.value('latchkey_leak_reports_total', { result: 'recorded' }), 1);
    t.equal(metrics.value('latchkey_leak_reports_total', { result: 'repeated' }), 999);

    await t.test('other places of the same key are recorded, but not without end', async (t) => {
      const before = connections;
      await Promise.all(
        Array.from({ length: 300 }, (_, index) => report(service, { key: key.key, url: `https://p.example/${index}` })),
      );
      t.equal(actionsOf(await leftBy(service)).filter((action) => action === 'key.leak_reported').length, placesInDay);
      t.ok(connections - before < 3 * placesInDay, `${connections - before} uses of a connection`);
    });
  },
);

t.test('on the next day the same report is recorded again, and old marks are deleted', async (t) => {
  const service = await startService(t);
  const { admin, client, clock } = service;
  await admin.patch('/v1/organization', { leakResponse: 'suspend' });
  const { body: key } = await admin.post('/v1/keys', {});
  await report(service, { key: key.key });
  await admin.post(`/v1/keys/${key.id}/resume`);
  await report(service, { key: key.key });
  t.equal((await admin.get(`/v1/keys/${key.id}`)).body.status, 'active', 'a repeated report does not act again');
  service.later(86_400_000);
  await report(service, { key: key.key });
  t.same(actionsOf(await leftBy(service)), [
    'key.leak_reported',
    'key.suspended',
    'key.leak_reported',
    'key.suspended',
  ]);
  for (const deleted of [0, 1, 1]) {
    t.equal(await pruneLeakReports({ db: client.db, clock }), deleted);
    service.later(86_400_000);
  }
});

t.test('reports without a credential are limited by address', async (t) => {
  const service = await startService(t, { publicLimit: 3, trustProxy: ['127.0.0.1'] });
  const send = (address: string) => report(service, { key: unknownKey() }, { 'x-forwarded-for': address });
  const statuses = (await Promise.all(Array.from({ length: 4 }, () => send('203.0.113.1')))).map(
    ({ status }) => status,
  );
  t.same(statuses.toSorted(), [202, 202, 202, 429]);
  t.equal((await send('203.0.113.2')).status, 202);
  for (let index = 0; index < 5; index++) t.equal((await service.admin.post('/v1/leaks', { key: 'x' })).status, 200);
});

t.test('admins and operators get an answer, and an admin knows only the keys of its organization', async (t) => {
  const service = await startService(t);
  const { admin, operator, as } = service;
  await admin.patch('/v1/organization', { leakResponse: 'suspend' });
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  const input = { role: 'admin', scopes: ['read', 'write'], name: 'Eve', email: 'eve@example.com' };
  const eve = as((await operator.post('/v1/access-tokens', input, inOther)).body.token);
  const unknown = { status: 200, body: { found: false, keyId: null, action: null } };

  t.match(await eve.post('/v1/leaks', { key: key.key }), unknown);
  t.match(await operator.post('/v1/leaks', { key: key.key }, inOther), unknown);
  t.match(await admin.post('/v1/leaks', { key: wrongSecretOf(key.id) }), unknown);
  t.match(await admin.post('/v1/leaks', { key: admin.token }), unknown, 'an access token is not a key');
  t.same(await leftBy(service), []);

  const found = { status: 200, body: { found: true, keyId: key.id, action: 'suspend' } };
  t.match(await admin.post('/v1/leaks', { key: key.key, note: 'Seen in a ticket' }), found);
  t.match(await admin.post('/v1/leaks', { key: key.key, note: 'Seen again' }), found, 'a retry gets the same answer');
  t.match((await leftBy(service))[0].actor, { type: 'admin', email: 'ada@example.com' });
  t.match(await operator.post('/v1/leaks', { key: key.key, source: 'audit' }), found);
  const operators = (await leftBy(service)).at(-1);
  t.match(operators, { action: 'key.leak_reported', actor: { type: 'operator' }, details: { source: 'audit' } });

  await admin.delete(`/v1/keys/${key.id}?reason=compromised`);
  t.match(await admin.post('/v1/leaks', { key: key.key, source: 'late' }), {
    status: 200,
    body: { found: true, keyId: key.id, action: 'none' },
  });
});

t.test('a credential that may not report is rejected like everywhere', async (t) => {
  const service = await startService(t);
  const { admin, verifier, as } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const input = { role: 'admin', scopes: ['read'], name: 'Reader', email: 'r@example.com' };
  const reader = as((await admin.post('/v1/access-tokens', input)).body.token);
  t.match(await reader.post('/v1/leaks', { key: key.key }), { status: 403, body: { code: 'scope_missing' } });
  t.match(await verifier.post('/v1/leaks', { key: key.key }), { status: 403, body: { code: 'forbidden' } });
  t.match(await as(key.key).post('/v1/leaks', { key: key.key }), { status: 403, body: { code: 'forbidden' } });
  t.match(await as('nonsense').post('/v1/leaks', { key: key.key }), { status: 401 });
  t.same(await leftBy(service), []);
});

t.test('texts of a report never contain a key, and are bounded', async (t) => {
  const service = await startService(t);
  const { body: key } = await service.admin.post('/v1/keys', {});
  const foreign = 'sk_live_4eC39HqLyjWDarjtT1zdp7dc';
  for (const [body, path] of [
    [{ key: key.key, url: `https://p.example/?k=${key.key}` }, 'body.url'],
    [{ key: 'other', note: `It is ${key.key}.` }, 'body.note'],
    [{ key: foreign, url: `https://p.example/${foreign}` }, 'body.url'],
    [{ key: foreign, source: encodeURIComponent(foreign).replace('_', '%5F') }, 'body.source'],
  ] as const) {
    t.match(await report(service, body), { status: 400, body: { code: 'secret_in_text', errors: [{ path }] } });
  }
  for (const body of [
    {},
    { key: 5 },
    { key: key.key, more: 1 },
    { key: key.key, url: 'x'.repeat(2_049) },
    { key: key.key, note: 'a\u202eb' },
  ]) {
    t.match(await report(service, body), { status: 400, body: { code: 'validation_failed' } });
  }
  t.match(await report(service, { key: 'x'.repeat(9_000) }), { status: 413, body: { code: 'payload_too_large' } });
  t.same(await leftBy(service), []);
});

t.test('a webhook brings the report to the organization, and without the note to the partner', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const input = { url: 'http://127.0.0.1:9/hook', events: ['key.leak_reported'] };
  const own = await makeWebhook(service, input);
  const theirs = await makeWebhook(service, { ...input, partnerId: partner.id });
  await report(service, { key: partner.keys[0].key, ...place });
  const [toOwn] = await bodiesFor(service, own, 'key.leak_reported');
  const [toPartner] = await bodiesFor(service, theirs, 'key.leak_reported');
  t.match(JSON.parse(toOwn ?? ''), {
    type: 'key.leak_reported',
    data: { keyId: partner.keys[0].id, details: { ...place, action: 'notify' } },
  });
  const { note, ...shared } = place;
  t.same(JSON.parse(toPartner ?? '').data.details, { ...shared, action: 'notify' });
});

t.test('a reported access token is logged once a day, with its id, and nothing else happens', async (t) => {
  const service = await startService(t);
  const { admin, verifier, app, logLines } = service;
  for (let index = 0; index < 3; index++) t.equal((await report(service, { key: verifier.token })).status, 202);
  const lines = logLines.filter((line) => line.includes('This access token was reported as leaked'));
  t.equal(lines.length, 1);
  const { body: self } = await verifier.get('/v1/self');
  t.match(JSON.parse(lines[0] ?? ''), { id: self.id });
  t.equal((await verifier.get('/v1/self')).status, 200);
  t.same(await leftBy({ admin }), []);
  const metrics = readMetrics((await app.inject({ url: '/metrics' })).body);
  t.equal(metrics.value('latchkey_leak_reports_total', { result: 'access_token' }), 3);
});

t.test("a key whose tag's keyring entry is lost is not checked by argon2id: the report is only logged", async (t) => {
  const first = await startService(t, { keyring: keyringOf('k1') });
  const { body: key } = await first.admin.post('/v1/keys', {});
  const second = await startService(t, { urls: first.urls, keyring: parseKeyring(keyringText('k2'), ['k1']) });
  const runs = second.hasher.runs;
  for (const found of [key.key, wrongSecretOf(key.id)]) t.equal((await report(second, { key: found })).status, 202);
  t.equal(second.hasher.runs, runs);
  const lines = second.logLines.filter((line) => line.includes('cannot be checked: the keyring lacks its entry'));
  t.match(
    lines.map((line) => JSON.parse(line).id),
    [key.id],
  );
  const metrics = readMetrics((await second.app.inject({ url: '/metrics' })).body);
  t.equal(metrics.value('latchkey_leak_reports_total', { result: 'unchecked' }), 2);
  t.same(await leftBy(first, key.id), []);
});

t.test('an imported key is found by its own text, whether it was imported as plaintext or as SHA-256', async (t) => {
  const service = await startService(t);
  const { admin, operator, verifier, hasher } = service;
  const [plaintext, hashed, unknown] = [foreignToken(), foreignToken(), foreignToken()];
  t.match(await admin.post('/v1/leaks', { key: plaintext }), { status: 200, body: { found: false } });
  const entries = [{ plaintext }, { sha256: sha256Of(hashed) }];
  const { status, body: imported } = await admin.post('/v1/keys/import', { entries });
  t.equal(status, 201);
  const runs = hasher.runs;
  await admin.patch('/v1/organization', { leakResponse: 'suspend' });
  for (const key of [plaintext, hashed, unknown]) t.equal((await report(service, { key, source: 'any' })).status, 202);
  t.equal(hasher.runs, runs);
  for (const [index, key] of [plaintext, hashed].entries()) {
    const { id } = imported.data[index];
    t.same(actionsOf(await leftBy(service, id)), ['key.leak_reported', 'key.suspended']);
    t.equal((await verifier.post('/v1/verify', { key, permission: 'read' })).body.code, 'suspended');
    t.match((await admin.post('/v1/leaks', { key })).body, { found: true, keyId: id, action: 'suspend' });
  }
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  t.match((await operator.post('/v1/leaks', { key: plaintext }, inOther)).body, { found: false });
  const url = `https://paste.example/${encodeURIComponent(plaintext)}`;
  t.match((await report(service, { key: plaintext, url })).body, { code: 'secret_in_text' });
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});
