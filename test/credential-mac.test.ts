import { generateKeyring, parseKeyring } from '../src/crypto/keyring.ts';
import { Secret } from '../src/crypto/secret.ts';
import { mintToken } from '../src/crypto/token.ts';
import { confirmInstallation } from '../src/database/installation.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { type Json, startService, type TestService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { keyringOf, keyringText } from './support/keyrings.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// An attacker with the service's database role, without the keyring, cannot forge or change a credential.

const code = async ({ verifier }: Pick<TestService, 'verifier'>, key: string, permission = 'read') =>
  (await verifier.post('/v1/verify', { key, permission, ip: '203.0.113.7' }, { 'cache-control': 'no-cache' })).body
    .code as string;

const tokenIdOf = (token: string) => `token_${token.slice(5, 31)}`;

t.test('a changed column makes a key unknown, and the original value makes it valid again', async (t) => {
  const service = await startService(t);
  const { admin, urls, operator } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const [key] = partner.keys as Json[];
  await admin.patch(`/v1/keys/${key.id}`, {
    expiresAt: new Date(Date.now() + 3_600_000).toISOString(),
    allowedIps: ['127.0.0.0/8'],
    rateLimit: { requests: 100, windowSeconds: 60 },
  });
  const ip = '127.0.0.1';
  const verify = async () =>
    (
      await service.verifier.post(
        '/v1/verify',
        { key: key.key, permission: 'read', ip },
        { 'cache-control': 'no-cache' },
      )
    ).body.code;
  t.equal(await verify(), 'valid');
  const [before = {}] = await dbQuery(urls.superuser, 'select * from api_keys where id = $1', [key.id]);
  const changes: Array<[string, unknown]> = [
    ['permission', 'write'],
    ['expires_at', null],
    ['expires_at', 'infinity'],
    ['allowed_ips', []],
    ['scopes', ['invoices:write']],
    ['allowed_ips', ['0.0.0.0/0']],
    ['rate_limit_requests', 1_000_000],
    ['rate_limit_window_seconds', 1],
    ['argon2id_hash', 'other'],
    ['tag_keyring_id', 'gone'],
    ['mac_keyring_id', 'gone'],
    ['tag', Buffer.alloc(32)],
    ['mac', Buffer.alloc(32)],
    ['mac', Buffer.alloc(0)],
  ];
  for (const [column, value] of changes) {
    await dbQuery(urls.app, `update api_keys set ${column} = $2 where id = $1`, [key.id, value]);
    t.equal(await verify(), 'not_found', `${column} = ${String(value)}`);
    await dbQuery(urls.app, `update api_keys set ${column} = $2 where id = $1`, [key.id, before[column]]);
    t.equal(await verify(), 'valid', `${column} with its original value`);
  }
  await dbQuery(urls.app, "update api_keys set partner_id = null, permission = 'read_write' where id = $1", [key.id]);
  t.equal(await verify(), 'not_found', 'moved to the default row');
  await dbQuery(urls.app, 'update api_keys set organization_id = $2 where id = $1', [key.id, other.id]);
  t.equal(await verify(), 'not_found', 'moved to another organization');
  t.match(service.logLines.join(''), /changed or written without the keyring/);
});

t.test('a compromised key cannot be revived', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  for (const isDeletedBefore of [false, true]) {
    const { body: key } = await admin.post('/v1/keys', {});
    if (isDeletedBefore) await admin.delete(`/v1/keys/${key.id}?reason=unused`);
    await admin.delete(`/v1/keys/${key.id}?reason=compromised`);
    t.equal(await code(service, key.key), 'deleted');
    const revive = "update api_keys set deleted_at = null, delete_reason = null, argon2id_hash = 'x' where id = $1";
    await dbQuery(urls.app, revive, [key.id]);
    t.equal(await code(service, key.key), 'not_found');
    const lighterReason =
      "update api_keys set deleted_at = now(), delete_reason = 'unused', argon2id_hash = 'x' where id = $1";
    await dbQuery(urls.app, lighterReason, [key.id]);
    t.equal((await admin.post(`/v1/keys/${key.id}/restore`)).status, 200, 'the row looks restorable');
    t.equal(await code(service, key.key), 'not_found', 'but the key does not work');
  }
});

t.test('a row that was edited by SQL does not become valid by a later change through the API', async (t) => {
  const service = await startService(t);
  const { admin, urls } = service;
  const { body: key } = await admin.post('/v1/keys', { allowedIps: ['203.0.113.7'] });
  await dbQuery(urls.app, "update api_keys set allowed_ips = '{}' where id = $1", [key.id]);
  t.equal(await code(service, key.key), 'not_found');
  const { status, body } = await admin.post(`/v1/keys/${key.id}/rotate`);
  t.match({ status, body }, { status: 409, body: { code: 'conflict' } }, 'its settings are not copied to a new key');
  t.equal((await admin.get('/v1/keys')).body.data.length, 1);
  t.equal((await admin.patch(`/v1/keys/${key.id}`, { name: 'Renamed' })).status, 200);
  t.equal(await code(service, key.key), 'not_found');
  t.equal((await admin.delete(`/v1/keys/${key.id}?reason=compromised`)).status, 200);
  t.equal(await code(service, key.key), 'not_found');
});

t.test('changes through the API keep keys and tokens valid', async (t) => {
  const service = await startService(t);
  const { admin } = service;
  const { body: key } = await admin.post('/v1/keys', {});
  const later = new Date(Date.now() + 3_600_000).toISOString();
  for (const patch of [
    { name: 'n' },
    { expiresAt: later },
    { allowedIps: ['203.0.113.7'] },
    { allowedIps: [] },
    { rateLimit: { requests: 5, windowSeconds: 60 } },
    { rateLimit: null },
    { metadata: { a: 1 } },
    { expiresAt: null },
  ]) {
    t.equal((await admin.patch(`/v1/keys/${key.id}`, patch)).status, 200);
    t.equal(await code(service, key.key), 'valid', JSON.stringify(patch));
  }
  const { body: rotated } = await admin.post(`/v1/keys/${key.id}/rotate`, { expireOldAfterSeconds: 3_600 });
  t.equal(await code(service, key.key), 'valid');
  t.equal(await code(service, rotated.key), 'valid');
  await admin.post(`/v1/keys/${key.id}/suspend`);
  t.equal(await code(service, key.key), 'suspended');
  await admin.post(`/v1/keys/${key.id}/resume`);
  await admin.delete(`/v1/keys/${key.id}`);
  t.equal(await code(service, key.key), 'deleted');
  await admin.post(`/v1/keys/${key.id}/restore`);
  t.equal(await code(service, key.key), 'valid');
});

t.test('an access token never has more rights than it was created with, whatever its row says', async (t) => {
  const service = await startService(t);
  const { urls, organizationId, operator, as } = service;
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const input = { role: 'admin', name: 'Reader', email: 'r@p.example', scopes: ['read'] };
  const changes = [
    "role = 'verifier'",
    "role = 'operator', organization_id = null",
    "scopes = '{read,write}'",
    `organization_id = '${other.id}'`,
    "expires_at = now() + interval '1 day'",
    "email = 'somebody.else@p.example'",
    "name = 'Somebody else'",
    "creator_chain = jsonb_set(creator_chain, '{0,id}', '\"somebody_else\"')",
    "tag_keyring_id = 'gone'",
  ];
  for (const change of changes) {
    const { body: createdToken } = await service.admin.post('/v1/access-tokens', input);
    t.equal((await as(createdToken.token).get('/v1/rows')).status, 200);
    await dbQuery(urls.app, `update access_tokens set ${change} where id = $1`, [createdToken.id]);
    const status = async () => (await as(createdToken.token).get('/v1/rows')).status;
    t.ok(await eventually(async () => (await status()) === 401, 2_000), change);
  }
  const { body: createdToken } = await service.admin.post('/v1/access-tokens', input);
  await service.admin.delete(`/v1/access-tokens/${createdToken.id}`);
  await dbQuery(urls.app, 'update access_tokens set deleted_at = null where id = $1', [createdToken.id]);
  t.equal((await as(createdToken.token).get('/v1/rows')).status, 401, 'a deleted token cannot be revived');
  const verifierId = tokenIdOf(service.verifier.token);
  await dbQuery(urls.app, "update access_tokens set role = 'admin', email = 'x@p.example' where id = $1", [verifierId]);
  const asAdmin = async () => (await service.verifier.get('/v1/rows')).status;
  t.ok(
    await eventually(async () => (await asAdmin()) === 401, 2_000),
    `${organizationId}'s verifier does not become an admin`,
  );
});

t.test('an inserted row under an unknown keyring entry does not work', async (t) => {
  const service = await startService(t);
  const { urls, organizationId, hasher, as } = service;
  const runsBefore = () => hasher.runs;
  for (const keyringId of ['gone', service.keyring.primary.id]) {
    const id = newId('token');
    const token = mintToken({ prefix: 'lk', kind: 'a', idSuffix: idSuffix(id) }).reveal();
    const hash = await hasher.hash(new Secret(token));
    await dbQuery(
      urls.app,
      `insert into access_tokens (id, organization_id, role, scopes, name, email, tag, tag_keyring_id, argon2id_hash, mac,
         mac_keyring_id, last_four, created_at, created_by, creator_chain)
       select $1, $2, 'admin', '{read,write}', 'Forged', 'f@p.example', $3, $4, $5, $3, $4, 'abcd', now(), created_by,
         creator_chain
       from access_tokens limit 1`,
      [id, organizationId, Buffer.alloc(32), keyringId, hash],
    );
    const before = runsBefore();
    t.equal((await as(token).get('/v1/rows')).status, 401, keyringId);
    const keyId = newId('key');
    const key = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(keyId) }).reveal();
    const keyHash = await hasher.hash(new Secret(key));
    await dbQuery(
      urls.app,
      `insert into api_keys (id, organization_id, permission, slot, tag, tag_keyring_id, argon2id_hash, mac, mac_keyring_id,
         last_four, allowed_ips, metadata, created_at, created_by)
       values ($1, $2, 'read_write', $6, $3, $4, $5, $3, $4, 'abcd', '{}', '{}', now(), '{"type":"system","id":"x","name":"x","email":null}')`,
      [keyId, organizationId, Buffer.alloc(32), keyringId, keyHash, keyringId === 'gone' ? 1 : 2],
    );
    t.equal(await code(service, key), 'not_found', keyringId);
    t.equal(hasher.runs, before + 1, "the only argon2id run was the test's own");
  }
});

t.test('a tag under a secondary keyring entry moves to the primary at its first use', async (t) => {
  const old = await startService(t, { keyring: keyringOf('k1') });
  const { body: key } = await old.admin.post('/v1/keys', {});
  const service = await startService(t, { urls: old.urls, keyring: keyringOf('k2', 'k1') });
  const verifier = service.as(old.verifier.token);
  t.equal((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body.code, 'valid');
  const renewedTags = () =>
    dbQuery(
      old.urls.superuser,
      `select tag_keyring_id as tag, mac_keyring_id as mac from api_keys where id = $1
       union all select tag_keyring_id, mac_keyring_id from access_tokens where id = $2`,
      [key.id, tokenIdOf(old.verifier.token)],
    );
  await eventually(async () => (await renewedTags()).every(({ tag, mac }) => tag === 'k2' && mac === 'k2'), 5_000);
  t.same(await renewedTags(), [
    { tag: 'k2', mac: 'k2' },
    { tag: 'k2', mac: 'k2' },
  ]);
});

t.test('a row that is edited between its load and the renewal of its tag is not signed', async (t) => {
  const old = await startService(t, { keyring: keyringOf('k1') });
  const { urls, admin } = old;
  const { body: key } = await admin.post('/v1/keys', { allowedIps: ['203.0.113.7'] });
  const { body: createdToken } = await admin.post('/v1/access-tokens', {
    role: 'admin',
    name: 'Reader',
    email: 'r@p.example',
    scopes: ['read'],
  });
  const service = await startService(t, { urls, keyring: keyringOf('k2', 'k1') });
  const verifier = service.as(old.verifier.token);
  const codeOf = async (presented: string) =>
    (await verifier.post('/v1/verify', { key: presented, permission: 'read', ip: '203.0.113.7' })).body.code;
  // A wrong token with the same id loads the record without renewing its tag. Then notifications are disabled.
  const wrongKey = mintToken({ prefix: 'lk', kind: 'k', idSuffix: key.id.slice(4) }).reveal();
  const wrongToken = mintToken({ prefix: 'lk', kind: 'a', idSuffix: createdToken.id.slice(6) }).reveal();
  t.equal(await codeOf(wrongKey), 'not_found');
  t.equal((await service.as(wrongToken).get('/v1/rows')).status, 401);
  for (const table of ['api_keys', 'access_tokens']) {
    await dbQuery(urls.superuser, `alter table ${table} disable trigger ${table}_notify`);
  }
  await dbQuery(urls.app, "update api_keys set allowed_ips = '{}' where id = $1", [key.id]);
  await dbQuery(urls.app, "update access_tokens set scopes = '{read,write}' where id = $1", [createdToken.id]);
  t.equal(await codeOf(key.key), 'valid', 'from the copy in memory');
  t.equal((await service.as(createdToken.token).get('/v1/rows')).status, 200);
  // Renewals begin in order, two at once. When these are done, the earlier ones are done too.
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  for (const { id, key: plaintext, permission } of partner.keys as Json[]) {
    await verifier.post('/v1/verify', { key: plaintext, permission });
    await eventually(async () => (await macOf(`api_keys where id = '${id}'`)) === 'k2');
  }
  async function macOf(what: string): Promise<unknown> {
    return (await dbQuery(urls.superuser, `select mac_keyring_id as id from ${what}`))[0]?.['id'];
  }
  t.equal(await macOf(`api_keys where id = '${key.id}'`), 'k1');
  t.equal(await macOf(`access_tokens where id = '${createdToken.id}'`), 'k1');
  const fresh = await startService(t, { urls, keyring: keyringOf('k2', 'k1') });
  t.equal((await fresh.as(createdToken.token).get('/v1/rows')).status, 401);
});

t.test('a foreign check value under the id of the next keyring entry does not block the rotation', async (t) => {
  const service = await startService(t, { keyring: keyringOf('k1') });
  const { db } = service.client;
  const confirm = (...ids: string[]) => confirmInstallation(db, { tokenPrefix: 'lk', keyring: keyringOf(...ids) });
  t.same(await confirm('k1'), []);
  for (const voucher of ['k1', 'k2', 'gone']) {
    await dbQuery(service.urls.owner, "delete from keyring_entries where id = 'k2'");
    await dbQuery(
      service.urls.app,
      "insert into keyring_entries (id, check_value, mac, mac_keyring_id) values ('k2', $1, $1, $2)",
      [Buffer.alloc(32, 7), voucher],
    );
    t.same(await confirm('k2', 'k1'), ['k2'], `it is ignored and named, confirmed by ${voucher}`);
  }
  await t.rejects(confirm('k2'), { name: 'InstallationMismatch' }, 'it must be removed before the old entry');
  await dbQuery(service.urls.owner, "delete from keyring_entries where id = 'k2'");
  t.same(await confirm('k1', 'k2'), []);
  t.same(await confirm('k2'), []);
  const other = (id: string) => `${id}:${Buffer.alloc(32, 'other').toString('base64')}`;
  const genuine = keyringOf('k1').entries;
  t.equal(genuine.length, 1);
  const text = (id: string) => `${id}:${Buffer.alloc(32, id).toString('base64')}`;
  for (const edited of [`${text('k1')},${other('k2')}`, `${text('k2')},${other('k1')}`, other('k1')]) {
    const keyring = parseKeyring(edited);
    const mismatch = { name: 'InstallationMismatch' };
    await t.rejects(
      confirmInstallation(db, { tokenPrefix: 'lk', keyring }),
      mismatch,
      'wrong bytes still stop the start',
    );
  }
});

t.test(
  'an entry declared as lost enables argon2id only for its own rows, and for no other kind of token',
  async (t) => {
    const old = await startService(t, { keyring: keyringOf('k1') });
    const { body: createdToken } = await old.admin.post('/v1/access-tokens', {
      role: 'admin',
      name: 'Reader',
      email: 'r@p.example',
      scopes: ['read'],
    });
    const service = await startService(t, { urls: old.urls, keyring: parseKeyring(keyringText('k2'), ['k1']) });
    const statusOf = async (token: string) => (await service.as(token).get('/v1/rows')).status;
    await dbQuery(old.urls.app, "update access_tokens set tag_keyring_id = 'gone' where id = $1", [createdToken.id]);
    t.equal(await statusOf(createdToken.token), 401, 'the entry of the tag is not declared as lost');
    await dbQuery(
      old.urls.app,
      "update access_tokens set role = 'admin', organization_id = $2, email = 'x@p.example' where id = $1",
      [tokenIdOf(old.verifier.token), old.organizationId],
    );
    t.equal(await statusOf(old.verifier.token), 401, "a verifier's token does not become an admin's");
    t.equal(await statusOf(old.admin.token), 200, 'unedited tokens work');
  },
);

t.test('an id cannot be both lost and in the keyring', async (t) => {
  const text = generateKeyring(new Date());
  const [id = ''] = text.split(':');
  t.throws(() => parseKeyring(text, [id]), {
    name: 'KeyringError',
    message: /listed as lost, but the keyring contains it/,
  });
  t.throws(() => parseKeyring(text, ['Not an id']), { name: 'KeyringError' });
});
