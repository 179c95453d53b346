import fc from 'fast-check';
import { type Client, type Json, startService, type TestService } from './support/app.ts';
import { dbDump, dbQuery } from './support/database.ts';
import { foreignToken, sha256Of, tracesOf } from './support/imports.ts';
import { keyringOf } from './support/keyrings.ts';
import { runRekey } from './support/rekey.ts';
import { t } from './support/tap.ts';

const importOf = (admin: Client, entries: unknown, more: object = {}) =>
  admin.post('/v1/keys/import', { entries, ...more });

async function addPartner({ admin }: TestService, fields: object = {}): Promise<Json> {
  const email = `p${Math.random()}@p.example`;
  const { body: partner } = await admin.post('/v1/partners', { email, permissions: ['read', 'write'], ...fields });
  for (const key of partner.keys) await admin.delete(`/v1/keys/${key.id}`);
  return partner;
}

const verify = async (client: Client, key: string) =>
  (await client.post('/v1/verify', { key, permission: 'read' })).body;

t.test('keys are imported by their plaintext or their SHA-256, and keep working', async (t) => {
  const service = await startService(t);
  const { admin, verifier } = service;
  const partner = await addPartner(service, { externalId: 'customer-1' });
  const [byText, byHash, ofDefaultRow] = [foreignToken(), foreignToken(), foreignToken()];
  const settings = {
    name: 'Billing export',
    expiresAt: '2099-01-01T00:00:00.000Z',
    rateLimit: { requests: 10, windowSeconds: 60 },
    allowedIps: ['203.0.113.0/24'],
    scopes: ['invoices:read'],
    metadata: { team: 'billing' },
  };
  const { status, body, headers } = await importOf(admin, [
    { partnerId: partner.id, permission: 'read', plaintext: byText, ...settings },
    { partnerExternalId: 'customer-1', permission: 'write', sha256: sha256Of(byHash).toUpperCase() },
    { sha256: sha256Of(ofDefaultRow), lastFour: ofDefaultRow.slice(-4) },
  ]);
  t.equal(status, 201);
  t.equal(headers['location'], '/v1/keys');
  t.match(body.data, [
    {
      ...settings,
      origin: 'imported',
      partnerId: partner.id,
      permission: 'read',
      status: 'active',
      maskedKey: `…${byText.slice(-4)}`,
      replacesKeyId: null,
    },
    { origin: 'imported', partnerId: partner.id, permission: 'write', maskedKey: '…', name: null, expiresAt: null },
    { origin: 'imported', partnerId: null, permission: 'read_write', maskedKey: `…${ofDefaultRow.slice(-4)}` },
  ]);
  const [first, second, third] = body.data;
  t.same((await admin.get(`/v1/keys/${first.id}`)).body, first);
  t.match(await verify(verifier, ofDefaultRow), { valid: true, code: 'valid', keyId: third.id });
  t.match(await verify(verifier, byHash), { code: 'insufficient_permission', keyId: second.id });
  t.match(await verify(verifier, byText), { code: 'ip_not_allowed', keyId: first.id });
  const { body: created } = await admin.post('/v1/keys', {});
  t.equal(created.origin, 'created');
  t.equal(await importOf(admin, [{ plaintext: foreignToken() }]).then(({ body }) => body.code), 'row_full');

  const { body: history } = await admin.get('/v1/history?action=key.imported');
  t.match(history.data, [
    { keyId: third.id, partnerId: null, details: { permission: 'read_write', plaintextGiven: false } },
    { keyId: second.id, partnerId: partner.id, details: { permission: 'write', plaintextGiven: false } },
    { keyId: first.id, partnerId: partner.id, details: { ...settings, permission: 'read', plaintextGiven: true } },
  ]);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
  const dump = await dbDump(service.urls.superuser);
  for (const trace of [byText, byHash, ofDefaultRow].flatMap(tracesOf)) {
    t.notOk(dump.includes(trace), 'neither a token nor its SHA-256 is in the database');
    t.notOk(service.logLines.join('').includes(trace), 'nor in the log');
  }
});

t.test('one problem names every entry that does not fit, and nothing is imported', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const partner = await addPartner(service);
  const onlyRead = await addPartner(service, { permissions: ['read'] });
  const deleted = await addPartner(service, { externalId: 'gone' });
  await admin.delete(`/v1/partners/${deleted.id}`);
  const known = foreignToken();
  const { body: imported } = await importOf(admin, [{ partnerId: onlyRead.id, plaintext: known }]);
  const own = { partnerId: partner.id, permission: 'read' };
  const repeated = foreignToken();
  const entries = [
    { ...own, plaintext: foreignToken() },
    { ...own, plaintext: 'too short' },
    { ...own, plaintext: 'é'.repeat(20) },
    { ...own, sha256: 'abc' },
    { ...own },
    { ...own, plaintext: foreignToken(), sha256: sha256Of('x') },
    { ...own, plaintext: foreignToken(), lastFour: '____' },
    { ...own, sha256: sha256Of('1'), lastFour: 'abcde' },
    { ...own, sha256: sha256Of('2'), partnerExternalId: 'x' },
    { ...own, sha256: sha256Of('3'), unknown: 1 },
    { sha256: sha256Of('4'), partnerId: `partner_${'0'.repeat(26)}` },
    { sha256: sha256Of('5'), partnerExternalId: 'gone' },
    { sha256: sha256Of('6'), partnerId: deleted.id },
    { sha256: sha256Of('7'), partnerId: onlyRead.id, permission: 'write' },
    { sha256: sha256Of('8'), partnerId: partner.id },
    { sha256: sha256Of('9'), permission: 'read' },
    { ...own, sha256: sha256Of('10'), expiresAt: '2020-01-01T00:00:00Z' },
    { ...own, sha256: sha256Of(known) },
    { ...own, plaintext: repeated },
    { ...own, sha256: sha256Of(repeated) },
    { ...own, sha256: sha256Of('11') },
    { ...own, plaintext: 'acme_live_0123456789', name: 'the key acme_live_0123456789' },
    { ...own, plaintext: 'acme_live_01234"6789', metadata: { note: ['acme_live_01234"6789'] } },
    'no object',
    { ...own, plaintext: service.verifier.token },
    { ...own, sha256: sha256Of('12'), name: `with ${service.verifier.token}` },
    { ...own, plaintext: `${service.verifier.token.slice(0, -6)}000000` },
    { ...own, plaintext: ' acme_live_0123456789' },
    { ...own, sha256: sha256Of('13'), name: 'nul \u0000' },
  ];
  const { status, body } = await importOf(admin, entries);
  t.equal(status, 400);
  t.equal(body.code, 'validation_failed');
  t.equal(body.keyId, imported.data[0].id, 'the key that has the token');
  const paths = new Map(body.errors.map(({ path, message }: Json) => [path, message]));
  t.same(
    [...paths.keys()],
    [
      'body.entries[1].plaintext',
      'body.entries[2].plaintext',
      'body.entries[3].sha256',
      'body.entries[4].sha256',
      'body.entries[5].sha256',
      'body.entries[6].lastFour',
      'body.entries[7].lastFour',
      'body.entries[8].partnerExternalId',
      'body.entries[9].unknown',
      'body.entries[10].partnerId',
      'body.entries[11].partnerExternalId',
      'body.entries[12].partnerId',
      'body.entries[13].permission',
      'body.entries[14].permission',
      'body.entries[15].permission',
      'body.entries[16].expiresAt',
      'body.entries[17].sha256',
      'body.entries[19].sha256',
      'body.entries[20].partnerId',
      'body.entries[21].name',
      'body.entries[22].metadata',
      'body.entries[23]',
      'body.entries[24].plaintext',
      'body.entries[25].name',
      'body.entries[26].plaintext',
      'body.entries[27].plaintext',
      'body.entries[28].name',
    ],
  );
  t.match(paths.get('body.entries[17].sha256'), new RegExp(imported.data[0].id));
  t.match(paths.get('body.entries[20].partnerId'), /already holds two live keys/);
  t.notOk(JSON.stringify(body).includes(repeated), 'no token is repeated');
  t.same(await dbQuery(urls.app, "select count(*)::int as keys from api_keys where origin = 'imported'"), [
    { keys: 1 },
  ]);
  t.equal((await admin.get('/v1/history?action=key.imported')).body.data.length, 1);
});

t.test('if all entries fail for one reason, the problem has its code', async (t) => {
  const service = await startService(t);
  const { admin, operator, as } = service;
  const partner = await addPartner(service);
  const token = foreignToken();
  const own = { partnerId: partner.id, permission: 'read' };
  const { body: first } = await importOf(admin, [{ ...own, plaintext: token }]);
  const again = await importOf(admin, [{ ...own, sha256: sha256Of(token) }]);
  t.match(again, { status: 409, body: { code: 'key_exists', keyId: first.data[0].id } });
  t.match(again.body.errors, [{ path: 'body.entries[0].sha256' }]);
  t.match(await importOf(admin, [{ partnerId: `partner_${'0'.repeat(26)}`, plaintext: foreignToken() }]), {
    status: 404,
    body: { code: 'not_found', errors: [{ path: 'body.entries[0].partnerId' }] },
  });
  const three = Array.from({ length: 3 }, () => ({ ...own, plaintext: foreignToken() }));
  const full = await importOf(admin, three);
  t.match(full, { status: 409, body: { code: 'row_full' } });
  t.equal(full.body.errors.length, 2, 'one place was free');
  t.match(await importOf(admin, [{ ...own, plaintext: service.verifier.token }]), {
    status: 400,
    body: { code: 'secret_in_text' },
  });

  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  const byOther = await operator.post('/v1/keys/import', { entries: [{ plaintext: token }] }, inOther);
  t.match(byOther, { status: 409, body: { code: 'key_exists' } }, 'a token exists once in an installation');
  t.equal(byOther.body.keyId, undefined);
  t.notMatch(JSON.stringify(byOther.body), first.data[0].id, "another organization's key is not named");
  const foreignPartner = { entries: [{ ...own, plaintext: foreignToken() }] };
  t.match(await operator.post('/v1/keys/import', foreignPartner, inOther), { status: 404 });
  t.equal((await as(service.verifier.token).post('/v1/keys/import', { entries: [] })).status, 403);
});

t.test('500 entries of which each fails are all named', async (t) => {
  const { admin } = await startService(t);
  const entries = Array.from({ length: 500 }, () => ({ sha256: 'x', name: '', scopes: [''] }));
  const { status, body } = await importOf(admin, entries);
  t.equal(status, 400);
  const named = new Set(body.errors.map(({ path }: Json) => path.split('.')[1]));
  t.equal(named.size, 500);
  for (const wrong of [[], Array.from({ length: 501 }, () => ({})), undefined, null, {}, 'x']) {
    t.equal((await importOf(admin, wrong)).status, 400);
  }
  t.equal((await importOf(admin, [{ sha256: sha256Of('x') }], { dryRun: 'yes' })).status, 400);
  const large = { plaintext: foreignToken(), metadata: { text: 'x'.repeat(16_000) } };
  t.equal(
    (
      await importOf(
        admin,
        Array.from({ length: 100 }, () => large),
      )
    ).status,
    413,
    'over 1 MiB',
  );
});

t.test('a dry run replies as the import would, and stores nothing', async (t) => {
  const service = await startService(t);
  const { admin, verifier, urls } = service;
  const token = foreignToken();
  const entries = [{ plaintext: token, name: 'Dry' }];
  const headers = { 'idempotency-key': 'one' };
  const dry = await admin.post('/v1/keys/import', { entries, dryRun: true }, headers);
  t.equal(dry.status, 200);
  t.match(dry.body.data, [{ origin: 'imported', name: 'Dry', permission: 'read_write', status: 'active' }]);
  t.equal((await verify(verifier, token)).code, 'malformed');
  t.equal((await admin.get(`/v1/keys/${dry.body.data[0].id}`)).status, 404);
  const [stored] = await dbQuery(
    urls.superuser,
    `select (select count(*) from api_keys)::int as keys, (select count(*) from idempotency_keys)::int as replies,
       (select count(*) from history where action = 'key.imported')::int as events`,
  );
  t.same(stored, { keys: 0, replies: 0, events: 0 });
  const real = await admin.post('/v1/keys/import', { entries }, headers);
  t.equal(real.status, 201);
  const { id, createdAt, ...shown } = dry.body.data[0];
  t.match(real.body.data[0], shown);
  t.equal((await verify(verifier, token)).code, 'valid');
  t.match(await importOf(admin, entries, { dryRun: true }), { status: 409, body: { code: 'key_exists' } });
});

t.test('with an Idempotency-Key an import happens once, and the stored request reveals no token', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const token = foreignToken();
  const headers = { 'idempotency-key': 'import-1' };
  const body = { entries: [{ sha256: sha256Of(token) }] };
  const first = await admin.post('/v1/keys/import', body, headers);
  const again = await admin.post('/v1/keys/import', body, headers);
  t.equal(again.headers['idempotent-replayed'], 'true');
  t.same(again.body, first.body);
  const other = { entries: [{ sha256: sha256Of(foreignToken()) }] };
  t.match(await admin.post('/v1/keys/import', other, headers), { status: 422, body: { code: 'idempotency_mismatch' } });
  const canonical = JSON.stringify([{}, { dryRun: false, ...body }]);
  const plain = JSON.stringify([{}, body]);
  const [stored] = await dbQuery(
    urls.superuser,
    "select encode(request_mac, 'hex') as mac, created from idempotency_keys",
  );
  t.same(stored?.['created'], [first.body.data[0].id]);
  const mac = String(stored?.['mac']);
  for (const text of [canonical, plain]) t.not(mac, sha256Of(text), 'a bare hash would allow guessing the token');
});

t.test('a stored request is recognized after a rotation of the keyring, and gone without its entry', async (t) => {
  const first = await startService(t, { keyring: keyringOf('k1') });
  const headers = { 'idempotency-key': 'import-1' };
  const body = { entries: [{ plaintext: foreignToken() }] };
  const { body: done } = await first.admin.post('/v1/keys/import', body, headers);
  const other = { entries: [{ plaintext: foreignToken() }] };
  const under = async (...ids: string[]) => {
    const { as } = await startService(t, { urls: first.urls, keyring: keyringOf(...ids) });
    return as(first.admin.token);
  };
  const both = await under('k2', 'k1');
  t.match(await both.post('/v1/keys/import', body, headers), { status: 201, body: done });
  t.match(await both.post('/v1/keys/import', other, headers), { status: 422 });
  const { code, output } = await runRekey(t, first.urls.app, 'k2', 'k1');
  t.equal(code, 0, output);
  const onlyNew = await under('k2');
  for (const sent of [body, other]) {
    const gone = { status: 409, body: { code: 'reply_gone', created: [done.data[0].id] } };
    t.match(await onlyNew.post('/v1/keys/import', sent, headers), gone);
  }
});

const anything = fc.anything({ withNullPrototype: false });

t.test('whatever the entries are, an import is either done or says why not', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const text = fc.string({ maxLength: 30 });
  const entry = fc.record(
    {
      plaintext: fc.oneof(text, fc.stringMatching(/^[\x21-\x7e]{16,40}$/), anything),
      sha256: fc.oneof(fc.stringMatching(/^[0-9a-f]{64}$/), text, anything),
      lastFour: fc.oneof(text, anything),
      name: fc.oneof(text, anything),
      metadata: fc.oneof(fc.dictionary(text, fc.jsonValue()), anything),
      scopes: fc.oneof(fc.array(text), anything),
      permission: fc.oneof(fc.constantFrom('read', 'write', 'read_write'), anything),
      partnerId: fc.oneof(text, anything),
      expiresAt: fc.oneof(text, anything),
    },
    { requiredKeys: [] },
  );
  await fc.assert(
    fc.asyncProperty(fc.array(entry, { maxLength: 5 }), async (entries) => {
      let payload: string;
      try {
        payload = JSON.stringify({ entries, dryRun: true });
      } catch {
        return;
      }
      const { status, body } = await admin.post('/v1/keys/import', payload, { 'content-type': 'application/json' });
      if (status === 200) return body.data.length === entries.length;
      return (
        [400, 404, 409].includes(status) && (body.errors === undefined || body.errors.length > 0 || status === 400)
      );
    }),
    { numRuns: 200 },
  );
  t.equal((await admin.get('/v1/keys')).body.data.length, 0);
});
