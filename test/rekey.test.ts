import { describeKeyringUse } from '../src/cli/keyring-use.ts';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { dbWriteKeys, keyringOf } from './support/keyrings.ts';
import { eventually } from './support/process.ts';
import { entriesOf, hold, runRekey, startRekey } from './support/rekey.ts';
import { t } from './support/tap.ts';

const eventsOf = (url: string) =>
  dbQuery(
    url,
    `select action, actor_id, canonical::jsonb -> 'details' as details from history
     where chain = 'installation' and action like 'keyring.%' order by sequence`,
  );

t.test('while a keyring is rotated, every key works at every step', async (t) => {
  const first = await startService(t, { keyring: keyringOf('old') });
  const { urls, admin } = first;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const { body: own } = await admin.post('/v1/keys', {});
  const { body: unsealed } = await admin.post('/v1/keys', {});
  await dbQuery(urls.superuser, 'update api_keys set sealed = null, sealed_keyring_id = null where id = $1', [
    unsealed.id,
  ]);
  const [deleted, compromised] = [
    (await admin.post('/v1/keys', { partnerId: partner.id, permission: 'read' })).body,
    (await admin.post('/v1/keys', { partnerId: partner.id, permission: 'write' })).body,
  ];
  await admin.delete(`/v1/keys/${deleted.id}`);
  await admin.delete(`/v1/keys/${compromised.id}?reason=compromised`);
  const live = [own, ...partner.keys];
  const permissionOf = (key: { permission: string }) => (key.permission === 'write' ? 'write' : 'read');

  const second = await startService(t, { urls, keyring: keyringOf('old', 'new') });
  const third = await startService(t, { urls, keyring: keyringOf('new', 'old') });
  const { body: newPartner } = await third
    .as(admin.token)
    .post('/v1/partners', { email: 'q@p.example', permissions: ['read'] });
  live.push(...newPartner.keys);

  const { code, output, stdout } = await runRekey(t, urls.app, 'new', 'old');
  t.equal(code, 0);
  t.match(output, /^Rekeying 0 of 6\nRekeying 6 of 6$/m);
  t.notMatch(stdout, /Rekeying/, 'only results go to stdout');
  t.match(output, /^6 keys were moved to new\.\n\d access tokens were moved to new\.$/m);
  t.match(
    output,
    /^Keyring entry new \(primary\): 5 sealed keys, the tags of 5 keys and \d+ access tokens?, the MACs of \d+ credentials\.$/m,
  );
  t.match(
    output,
    /^Keyring entry old \(secondary\): the tags of 1 key and \d+ access tokens?, the remaining tags of 1 compromised key\. Each tag moves to the primary at its next use, and without this entry compromised keys look like unknown keys\.$/m,
  );
  t.same(await entriesOf(urls.superuser), [
    { sealed: '-', tag: 'old', keys: 2 },
    { sealed: 'new', tag: 'new', keys: 5 },
  ]);
  t.same(await eventsOf(urls.superuser), [
    { action: 'keyring.rekey_started', actor_id: 'rekey', details: { primary: 'new', keys: 6 } },
    { action: 'keyring.rekeyed', actor_id: 'rekey', details: { primary: 'new', keys: 6, unopened: 0, locked: 0 } },
  ]);

  const notMoved = () =>
    dbQuery(
      urls.superuser,
      `select id from api_keys where id = $1 and tag_keyring_id = 'old'
       union all select id from access_tokens where id = any($2) and tag_keyring_id = 'old'`,
      [
        unsealed.id,
        [admin.token, first.verifier.token, first.operator.token].map((token) => `token_${token.slice(5, 31)}`),
      ],
    );
  t.not((await notMoved()).length, 0);
  await third.as(first.verifier.token).post('/v1/verify', { key: unsealed.key, permission: 'read' });
  await third.as(first.operator.token).get('/v1/organizations');
  await eventually(async () => (await notMoved()).length === 0, 5_000);

  const last = await startService(t, { urls, keyring: keyringOf('new') });
  for (const [name, service] of Object.entries({ second, third, last })) {
    const verifier = service.as(first.verifier.token);
    const verify = (key: string, permission: string) => verifier.post('/v1/verify', { key, permission });
    await verify(own.key, 'read');
    const before = service.hasher.runs;
    for (const key of live) {
      t.equal((await verify(key.key, permissionOf(key))).body.code, 'valid', `${name}: ${key.permission}`);
      const revealed = await service.as(admin.token).post(`/v1/keys/${key.id}/reveal`);
      t.equal(revealed.body.key, key.key, `${name} reveals`);
    }
    t.equal((await verify(deleted.key, 'read')).body.code, 'deleted');
    t.equal(service.hasher.runs, before, 'argon2id never ran');
  }

  await t.test('a key without a sealed value still works, because its tag was renewed at its use', async (t) => {
    const verifier = last.as(first.verifier.token);
    t.equal((await verifier.post('/v1/verify', { key: unsealed.key, permission: 'read' })).body.code, 'valid');
    t.equal((await verifier.post('/v1/verify', { key: compromised.key, permission: 'read' })).body.code, 'not_found');
  });

  await t.test('a second run moves nothing and records nothing', async (t) => {
    t.match(await runRekey(t, urls.app, 'new', 'old'), { code: 0, output: /^Nothing was moved to new\.$/m });
    t.equal((await eventsOf(urls.superuser)).length, 2);
    const { body } = await last.as(first.operator.token).get('/v1/history/verify');
    t.match(body, { valid: true });
  });
});

t.test('a value that cannot be unsealed is reported, not changed and not counted', async (t) => {
  const service = await startService(t, { keyring: keyringOf('new', 'old', 'older') });
  const { urls } = service;
  const { organizationId } = service.bootstrapped;
  const [flipped, foreign, retagged, good] = await dbWriteKeys(urls.superuser, keyringOf('old'), organizationId, 4);
  const [lost] = await dbWriteKeys(urls.superuser, keyringOf('older'), organizationId, 1);
  const sql = {
    flip: 'update api_keys set sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1) where id = $1',
    swap: 'update api_keys set sealed = (select sealed from api_keys where id = $2) where id = $1',
    retag: 'update api_keys set tag = (select tag from api_keys where id = $2) where id = $1',
  };
  await dbQuery(urls.superuser, sql.flip, [flipped?.id]);
  await dbQuery(urls.superuser, sql.swap, [foreign?.id, good?.id]);
  await dbQuery(urls.superuser, sql.retag, [retagged?.id, good?.id]);
  const dump = () => dbQuery(urls.superuser, 'select * from api_keys where id <> $1 order by id', [good?.id]);
  const before = await dump();
  const { code, output } = await runRekey(t, urls.app, 'new', 'old');
  t.equal(code, 1);
  t.match(output, `wrong   ${flipped?.id} was not moved: its sealed value was changed`);
  t.match(output, `wrong   ${foreign?.id} was not moved: its sealed value was changed, or belongs to another record`);
  t.match(output, `wrong   ${retagged?.id} was not moved: its row was changed or written without the keyring`);
  t.match(output, `wrong   ${lost?.id} was not moved: the keyring lacks the entry`);
  t.match(output, /^1 key was moved to new\.$/m);
  t.match(output, /^Keyring entry older \(not in the keyring\): 1 sealed key/m);
  t.notMatch(output, /lk_k_/);
  t.same(await dump(), before);
  t.match((await eventsOf(urls.superuser)).at(-1), { details: { keys: 1, unopened: 4, locked: 0 } });
});

t.test('rekey reports a service that still uses another primary', async (t) => {
  const service = await startService(t, { keyring: keyringOf('new', 'old') });
  const { urls } = service;
  const writeOld = () => dbWriteKeys(urls.superuser, keyringOf('old'), service.bootstrapped.organizationId, 1);
  const [held] = await writeOld();
  const release = await hold(service, held?.id);
  const rekeying = startRekey(t, urls.app, 'new', 'old');
  await rekeying.until(/Rekeying 0 of 1/);
  await writeOld();
  await release();
  t.equal((await rekeying.exited).code, 1);
  t.match(rekeying.output(), /^wrong {3}1 key was sealed or tagged under another entry meanwhile/m);
});

t.test('the use of each keyring entry is described in words', async (t) => {
  const keyring = keyringOf('k3', 'k2', 'k1');
  const none = { sealedKeys: 0, webhooks: 0, claims: 0, taggedKeys: 0, taggedTokens: 0, bareTags: 0, rows: 0 };
  const use = { ...none, sealedDigests: 0, taggedImports: 0, archives: 0 };
  t.same(describeKeyringUse(keyring, []), [
    'Keyring entry k3 (primary): not used yet.',
    'Keyring entry k2 (secondary): not used; it can be removed.',
    'Keyring entry k1 (secondary): not used; it can be removed.',
  ]);
  t.same(
    describeKeyringUse(keyring, [
      { ...use, keyringId: 'k0', sealedKeys: 1, taggedKeys: 1 },
      { ...use, keyringId: 'k1', sealedKeys: 2, taggedKeys: 3, taggedTokens: 4 },
      { ...use, keyringId: 'k2', claims: 3, bareTags: 5 },
      { ...use, keyringId: 'k3', sealedKeys: 6, webhooks: 2, taggedKeys: 7 },
    ]),
    [
      'Keyring entry k3 (primary): 6 sealed keys, the tags of 7 keys, the secrets of 2 webhooks.',
      'Keyring entry k2 (secondary): 3 pending claims, the remaining tags of 5 compromised keys. `latchkey rekey` moves them to the primary.',
      'Keyring entry k1 (secondary): 2 sealed keys, the tags of 3 keys and 4 access tokens. `latchkey rekey` moves them to the primary.',
      'Keyring entry k0 (not in the keyring): 1 sealed key, the tags of 1 key. Those credentials are rejected. Restore the entry, or set LOST_KEYRING_IDS=k0 if it is lost for good.',
    ],
  );
  const imports = { ...use, sealedDigests: 2, taggedKeys: 3, taggedImports: 2 };
  t.same(describeKeyringUse(keyring, [{ ...imports, keyringId: 'k1' }]).slice(2), [
    'Keyring entry k1 (secondary): the sealed hashes of 2 imported keys, the tags of 3 keys. `latchkey rekey` moves them to the primary.',
  ]);
  const withoutK0 = { ...keyring, lostIds: new Set(['k0']) };
  t.same(describeKeyringUse(withoutK0, [{ ...imports, keyringId: 'k0' }]).slice(3), [
    'Keyring entry k0 (not in the keyring): the sealed hashes of 2 imported keys, the tags of 3 keys. This entry is set as lost: argon2id checks each credential once, at its next use. 2 imported keys cannot be checked and must be replaced.',
  ]);
});
