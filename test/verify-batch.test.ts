import { bucketsOf } from '../src/verification/limits.ts';
import { type Json, startService } from './support/app.ts';
import { t } from './support/tap.ts';

t.test('each entry gets the verdict of a single verification, in order and independent of the others', async (t) => {
  const { admin, verifier, operator, organizationId } = await startService(t);
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  const [reading, writing] = partner.keys;
  const { body: bound } = await admin.post('/v1/keys', { allowedIps: ['10.0.0.0/8'] });
  const { body: deletedKey } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${deletedKey.id}`);
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const { body: otherKey } = await operator.post('/v1/keys', {}, { 'latchkey-organization': other.id });
  const entries = [
    { key: reading.key, permission: 'read' },
    { key: reading.key, permission: 'write' },
    { key: writing.key, permission: 'write', cost: 3 },
    { key: bound.key, permission: 'read', ip: '10.1.1.1', cost: 0 },
    { key: bound.key, permission: 'read', ip: '192.0.2.1' },
    { key: deletedKey.key, permission: 'read' },
    { key: otherKey.key, permission: 'read' },
    { key: 'nonsense', permission: 'read' },
  ];
  const { status, body, headers } = await verifier.post('/v1/verify/batch', { entries });
  t.equal(status, 200);
  t.match(headers['content-type'], /^application\/json/);
  t.same(
    body.data.map(({ code }: Json) => code),
    ['valid', 'insufficient_permission', 'valid', 'valid', 'ip_not_allowed', 'deleted', 'not_found', 'malformed'],
  );
  for (const [index, entry] of entries.entries()) {
    const { body: single } = await verifier.post('/v1/verify', { ...entry, cost: 0 });
    const { rateLimit: _, ...verdict } = body.data[index];
    const { rateLimit: __, ...expected } = single;
    t.strictSame(verdict, expected, `entry ${index}`);
  }
  t.same([body.data[0].dependsOnIp, body.data[3].dependsOnIp, body.data[7].dependsOnIp], [false, true, null]);
  t.same(body.data[2].rateLimit, { policy: 'owner', limit: 1000, windowSeconds: 60, remaining: 996, resetSeconds: 60 });
  t.equal(body.data[3].organizationId, organizationId);
});

t.test('an invalid entry gets a problem in its place; an invalid batch is rejected', async (t) => {
  const { app, admin, verifier } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const good = { key: key.key, permission: 'read' };
  const invalidEntries: Array<[entry: unknown, path: string]> = [
    [null, 'body.entries.1'],
    [[good], 'body.entries.1'],
    [{ key: key.key }, 'body.entries.1.permission'],
    [{ ...good, permission: 'admin' }, 'body.entries.1.permission'],
    [{ ...good, ip: 7 }, 'body.entries.1.ip'],
    [{ ...good, cost: 1_001 }, 'body.entries.1.cost'],
    [{ ...good, uses: 0 }, 'body.entries.1.uses'],
    [{ ...good, uses: 1.5 }, 'body.entries.1.uses'],
    [{ ...good, more: 1 }, 'body.entries.1.more'],
    [{ ...good, key: 1 }, 'body.entries.1.key'],
  ];
  for (const [entry, path] of invalidEntries) {
    const { status, body } = await verifier.post('/v1/verify/batch', { entries: [good, entry, good] });
    t.equal(status, 200, path);
    t.match(body.data, [
      { code: 'valid' },
      { code: 'validation_failed', status: 400, errors: [{ path }] },
      { code: 'valid' },
    ]);
  }
  for (const body of [{}, { entries: [] }, { entries: good }, { entries: [good], more: 1 }, []]) {
    t.match(await verifier.post('/v1/verify/batch', body), { status: 400 }, JSON.stringify(body));
  }
  const of = (count: number) =>
    verifier.post('/v1/verify/batch', { entries: Array.from({ length: count }, () => ({ ...good, cost: 0 })) });
  t.equal((await of(500)).body.data.length, 500);
  t.match(await of(501), { status: 400 });
  const tooLong = { entries: Array.from({ length: 500 }, () => ({ key: 'x'.repeat(1_050), permission: 'read' })) };
  t.match(await verifier.post('/v1/verify/batch', tooLong), { status: 413, body: { code: 'payload_too_large' } });
  t.equal(
    (await verifier.post('/v1/verify', { key: 'x'.repeat(70_000), permission: 'read' })).status,
    413,
    'other routes accept 64 KiB',
  );
  t.equal(app.hasRoute({ method: 'POST', url: '/v1/verify/batch' }), true);
});

t.test('already allowed uses are counted beyond the limit, whatever the state of the key', async (t) => {
  const { admin, verifier, verification, client } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', { rateLimit: { requests: 10, windowSeconds: 60 } });
  const report = async (uses: number, cost = uses) => {
    const { body } = await verifier.post('/v1/verify/batch', {
      entries: [{ key: key.key, permission: 'read', uses, cost }],
    });
    return body.data[0];
  };
  t.match(await report(4), { valid: true, rateLimit: { policy: 'key', remaining: 6 } });
  t.match(
    await report(40),
    { valid: true, rateLimit: { policy: 'key', remaining: 0 } },
    'uses beyond the limit are counted too',
  );
  t.match((await verifier.post('/v1/verify', { key: key.key, permission: 'read' })).body, { code: 'rate_limited' });
  t.match(await report(2, 0), { valid: true });

  await admin.delete(`/v1/keys/${key.id}`);
  t.match(await report(5), { valid: false, code: 'deleted', rateLimit: null }, 'the verdict is current');
  await verification.usage.flush();
  const { body: usage } = await admin.get(`/v1/keys/${key.id}/usage`);
  t.match(usage.total, { allowed: 51, denied: 0, rateLimited: 1 });
  const { body: history } = await admin.get(`/v1/keys/${key.id}/history`);
  t.notOk(
    history.data.some(({ action }: Json) => action === 'key.used_after_deletion'),
    'earlier uses are not recorded as uses after the deletion',
  );
  const { rows } = await client.pool.query('select 1 from deleted_key_uses');
  t.same(rows, []);
  const owner = await verification.records.apiKeys.get(key.id, true);
  if (owner === undefined) throw new Error('the record is gone');
  const [bucket] = bucketsOf(owner);
  t.match(await verification.limits.count([bucket], 0), { remaining: 1_000 - 49 }, "the owner's limit counts them too");
});

t.test('keys of another organization cannot be counted', async (t) => {
  const { admin, operator, as } = await startService(t);
  const { body: key } = await admin.post('/v1/keys', {});
  const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
  const inOther = { 'latchkey-organization': other.id };
  const { body: token } = await operator.post(
    '/v1/access-tokens',
    { role: 'verifier', scopes: ['read'], name: 'v' },
    inOther,
  );
  const entries = [{ key: key.key, permission: 'read', uses: 900, cost: 900 }];
  t.match((await as(token.token).post('/v1/verify/batch', { entries })).body.data, [{ code: 'not_found' }]);
  t.match((await admin.get(`/v1/keys/${key.id}/usage`)).body.total, { allowed: 0 });
});
