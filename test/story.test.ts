import { type Client, type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

// The requirements as one story, in their order.

t.test('an organization manages its keys', async (t) => {
  const service = await startService(t);
  const { admin, verifier, organizationId } = service;

  const verdict = async (key: string, permission: 'read' | 'write') => {
    const { status, body } = await verifier.post('/v1/verify', { key, permission });
    t.equal(status, 200);
    return body.code as string;
  };
  const actions = async (client: Client, path = '/v1/history') => {
    const { body } = await client.get(`${path}?limit=200`);
    const actions = body.data.map((event: Json) => event.action).reverse();
    // Uses of deleted keys are recorded some time after the use.
    return actions.filter((action: string) => action !== 'key.used_after_deletion');
  };

  await t.test('an admin lists the keys: a default row with two free places', async (t) => {
    const { status, body } = await admin.get('/v1/rows');
    t.equal(status, 200);
    t.same(body, {
      data: [
        {
          partnerId: null,
          partnerEmail: null,
          permission: 'read_write',
          keys: [],
          freePlaces: 2,
          expiringSoon: [],
        },
      ],
      nextCursor: null,
    });
  });

  let first: Json;
  let second: Json;
  await t.test('an admin adds two keys without affecting the first, and a third is rejected', async (t) => {
    first = (await admin.post('/v1/keys', { name: 'Old' })).body;
    const created = await admin.post('/v1/keys', { name: 'New' });
    second = created.body;
    t.equal(created.status, 201);
    t.equal(created.headers['location'], `/v1/keys/${second.id}`);
    t.match(second, {
      organizationId,
      partnerId: null,
      permission: 'read_write',
      name: 'New',
      maskedKey: `lk_k_…${second.key.slice(-4)}`,
      status: 'active',
      createdBy: { type: 'admin', email: 'ada@example.com' },
      deletedAt: null,
    });
    t.equal(await verdict(first.key, 'read'), 'valid');
    t.equal(await verdict(second.key, 'read'), 'valid');

    const third = await admin.post('/v1/keys', {});
    t.equal(third.status, 409);
    t.equal(third.body.code, 'row_full');
    t.same(third.body.keyIds, [first.id, second.id]);
    t.match(third.body.detail, first.id);

    const { body: rows } = await admin.get('/v1/rows');
    t.same(
      rows.data[0].keys.map((key: Json) => key.id),
      [first.id, second.id],
    );
    t.equal(rows.data[0].freePlaces, 0);
    t.same((await actions(admin)).slice(-2), ['key.created', 'key.created'], 'the rejected third key left no event');
  });

  const partnerKeys: Record<string, Json[]> = {};
  const partners: Record<string, Json> = {};
  for (const permissions of [['read'], ['write'], ['read', 'write']]) {
    const name = permissions.join(' and ');
    await t.test(`an admin adds a partner with ${name}`, async (t) => {
      const email = `${permissions.join('-')}@partner.example`;
      const { status, headers, body } = await admin.post('/v1/partners', { email, permissions });
      t.equal(status, 201);
      t.equal(headers['location'], `/v1/partners/${body.id}`);
      t.match(body, { email, permissions, status: 'active' });
      t.same(
        body.keys.map((key: Json) => key.permission),
        permissions,
        'one key for each permission',
      );
      partners[name] = body;
      partnerKeys[name] = body.keys;
      t.same((await actions(admin)).slice(-1 - permissions.length), [
        'partner.created',
        ...permissions.map(() => 'key.created'),
      ]);
    });
  }

  await t.test('each permission allows only its own use; only keys of the default row have both', async (t) => {
    const all = Object.values(partnerKeys).flat();
    for (const key of all) {
      const other = key.permission === 'read' ? 'write' : 'read';
      t.equal(await verdict(key.key, key.permission), 'valid');
      t.equal(await verdict(key.key, other), 'insufficient_permission');
    }
    t.equal(await verdict(first.key, 'read'), 'valid');
    t.equal(await verdict(first.key, 'write'), 'valid');
    const { body } = await admin.get('/v1/keys?permission=read_write');
    t.same(body.data.map((key: Json) => key.id).sort(), [first.id, second.id].sort());
  });

  await t.test('a partner with both permissions has two rows, and a new key must name its permission', async (t) => {
    const partnerId = partners['read and write'].id;
    const withoutPermission = await admin.post('/v1/keys', { partnerId });
    t.equal(withoutPermission.status, 400);
    t.equal(withoutPermission.body.errors[0].path, 'body.permission');
    const withPermission = await admin.post('/v1/keys', { partnerId, permission: 'write' });
    t.equal(withPermission.status, 201);
    t.equal((await admin.post('/v1/keys', { partnerId, permission: 'write' })).body.code, 'row_full');
    const { body: rows } = await admin.get('/v1/rows');
    t.same(
      rows.data.map((row: Json) => [row.partnerEmail, row.permission, row.freePlaces]),
      [
        [null, 'read_write', 0],
        ['read-write@partner.example', 'read', 1],
        ['read-write@partner.example', 'write', 0],
        ['write@partner.example', 'write', 1],
        ['read@partner.example', 'read', 1],
      ],
    );
  });

  await t.test('a reveal is recorded and returns the created key', async (t) => {
    const key = partnerKeys['read']?.[0];
    const { status, body } = await admin.post(`/v1/keys/${key.id}/reveal`, {
      reason: 'The partner lost it',
      recipient: 'ops@partner.example',
    });
    t.equal(status, 200);
    t.same(body, { key: key.key });
    const { body: history } = await admin.get(`/v1/keys/${key.id}/history`);
    t.match(history.data[0], {
      action: 'key.revealed',
      keyId: key.id,
      partnerId: partners['read'].id,
      actor: { type: 'admin', email: 'ada@example.com' },
      details: { reason: 'The partner lost it', recipient: 'ops@partner.example' },
    });
  });

  await t.test('a deleted key is rejected at once, and its place is free', async (t) => {
    const { status, body } = await admin.delete(`/v1/keys/${first.id}?reason=rotated`);
    t.equal(status, 200);
    t.equal(body.status, 'deleted');
    t.equal(Date.parse(body.restorableUntil) - Date.parse(body.deletedAt), 86_400_000);
    t.equal(await verdict(first.key, 'read'), 'deleted');
    t.equal(await verdict(second.key, 'read'), 'valid', 'the other key of the row still works');
    const again = await admin.delete(`/v1/keys/${first.id}`);
    t.equal(again.body.code, 'already_deleted');
    t.equal((await admin.post(`/v1/keys/${first.id}/reveal`)).body.code, 'already_deleted');
    t.equal((await admin.post('/v1/keys', {})).status, 201);
    t.same((await actions(admin)).slice(-2), ['key.deleted', 'key.created']);
  });

  await t.test('deleting a partner deletes all its keys', async (t) => {
    const partner = partners['read and write'];
    const before = partnerKeys['read and write'] ?? [];
    const { status, body } = await admin.delete(`/v1/partners/${partner.id}`);
    t.equal(status, 200);
    t.equal(body.status, 'deleted');
    for (const key of before) t.equal(await verdict(key.key, key.permission), 'deleted');
    t.equal((await admin.post('/v1/keys', { partnerId: partner.id, permission: 'read' })).body.code, 'already_deleted');
    t.same(
      (await actions(admin)).slice(-4),
      ['partner.deleted', 'key.deleted', 'key.deleted', 'key.deleted'],
      'one event for the partner and one for each of its three keys',
    );
    const again = await admin.post('/v1/partners', { email: partner.email, permissions: ['read'] });
    t.equal(again.status, 201, 'the address is free again');
  });

  await t.test('history lists all changes, and the chain is valid', async (t) => {
    const { body } = await admin.get('/v1/history?limit=200');
    t.same(
      body.data.map((event: Json) => event.sequence),
      Array.from({ length: body.data.length }, (_, index) => body.data.length - index),
      'gapless, newest first',
    );
    t.ok(body.data.every((event: Json) => event.organizationId === organizationId));
    const { body: ofPartner } = await admin.get(`/v1/partners/${partners['read'].id}/history`);
    t.same(
      ofPartner.data.map((event: Json) => event.action),
      ['key.revealed', 'key.created', 'partner.created'],
    );
    const { body: check } = await admin.get('/v1/history/verify');
    const { fullyVerifiedAt, ...verdict } = check;
    t.match(fullyVerifiedAt, /^20/);
    t.same(verdict, {
      valid: true,
      events: body.data.length,
      archivedEvents: 0,
      head: body.data[0].hash,
      firstBadSequence: null,
      flaws: [],
      stateDifferences: [],
      verifiedFrom: 1,
      verifiedPointFlaw: null,
    });
  });
});
