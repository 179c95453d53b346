import { Problem } from '../src/domain/errors.ts';
import { expiryFor, requireWithinLifetime } from '../src/keys/lifetime-policy.ts';
import { requireFittingLifetimes } from '../src/organizations/policy.ts';
import { type Client, type Json, startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { t } from './support/tap.ts';

const now = new Date('2026-06-01T00:00:00Z');
const day = 86_400_000;
const inDays = (days: number) => new Date(now.getTime() + days * day);
const rulesOf = (most: number | null, usual: number | null) => ({
  max_key_lifetime_seconds: most === null ? null : most * 86_400,
  default_key_lifetime_seconds: usual === null ? null : usual * 86_400,
});

/** The result of a decision; a rejection as its path. */
function resultOf(decide: () => unknown): unknown {
  try {
    return decide();
  } catch (error) {
    if (error instanceof Problem) return error.errors?.[0]?.path;
    throw error;
  }
}

t.test('the expiry of a new key follows from the request and the rules of its organization', async (t) => {
  const path = 'body.entries[3].expiresAt';
  for (const [most, usual, requested, expected] of [
    [null, null, undefined, null],
    [null, null, null, null],
    [null, null, inDays(9_999), inDays(9_999)],
    [null, 30, undefined, inDays(30)],
    [null, 30, null, null],
    [null, 30, inDays(31), inDays(31)],
    [90, null, undefined, inDays(90)],
    [90, null, null, path],
    [90, null, inDays(90), inDays(90)],
    [90, null, new Date(inDays(90).getTime() + 1), path],
    [90, 30, undefined, inDays(30)],
    [90, 30, null, path],
    [90, 30, inDays(60), inDays(60)],
    [null, null, now, path],
    [90, 30, inDays(-1), path],
  ] as const) {
    const result = resultOf(() => expiryFor(requested, { rules: rulesOf(most, usual), now, path }));
    t.same(result, expected, `maximum ${most}, default ${usual}, requested ${requested}`);
  }
  const farthest = { max_key_lifetime_seconds: null, default_key_lifetime_seconds: 1_000_000_000 };
  const late = new Date('9990-01-01T00:00:00Z');
  t.same(expiryFor(undefined, { rules: farthest, now: late, path }), new Date('9999-12-31T23:59:59.999Z'));
});

t.test('the maximum lifetime of an existing key counts from its creation, but it may always end earlier', async (t) => {
  const path = 'body.expiresAt';
  for (const [created, expires, requested, expected] of [
    // Within 90 days of the creation.
    [inDays(-10), inDays(20), inDays(80), inDays(80)],
    [inDays(-10), inDays(20), inDays(81), path],
    [inDays(-10), inDays(20), null, path],
    // A key from before the maximum can be given an end, at most 90 days from now.
    [inDays(-400), null, inDays(90), inDays(90)],
    [inDays(-400), null, inDays(91), path],
    [inDays(-400), inDays(500), inDays(90), inDays(90)],
    [inDays(-400), inDays(50), inDays(51), path],
    [inDays(-400), inDays(50), inDays(49), inDays(49)],
    // Not requested: it stays as it is.
    [inDays(-400), null, undefined, null],
    [inDays(-400), inDays(500), undefined, inDays(500)],
  ] as const) {
    const present = { created_at: created, expires_at: expires };
    const result = resultOf(() => expiryFor(requested, { rules: rulesOf(90, 30), now, path, present }));
    t.same(result, expected, `created ${created}, expires ${expires}, requested ${requested}`);
  }
  const present = { created_at: inDays(-400), expires_at: null };
  t.doesNotThrow(() => requireWithinLifetime(inDays(9_999), { rules: rulesOf(null, 30), now, path, present }));
});

t.test('the default lifetime of an organization is at most its maximum', async (t) => {
  for (const [most, usual, isFitting] of [
    [null, null, true],
    [null, 5, true],
    [5, null, true],
    [5, 5, true],
    [5, 6, false],
  ] as const) {
    const result = resultOf(() =>
      requireFittingLifetimes({ maxKeyLifetimeSeconds: most, defaultKeyLifetimeSeconds: usual }),
    );
    t.equal(result, isFitting ? undefined : 'body.defaultKeyLifetimeSeconds', `maximum ${most}, default ${usual}`);
  }
});

const settings = (admin: Client, patch: unknown) => admin.patch('/v1/organization', patch);

const lifetimeOf = ({ createdAt, expiresAt }: Json) =>
  expiresAt === null ? null : (Date.parse(expiresAt) - Date.parse(createdAt)) / 1000;

const isInvalid = (path: string) => ({ status: 400, body: { code: 'validation_failed', errors: [{ path }] } });

t.test('an organization shows its settings, and records each change of them', async (t) => {
  const { admin, organizationId, urls } = await startService(t);
  const initial = {
    selfService: false,
    maxKeyLifetimeSeconds: null,
    defaultKeyLifetimeSeconds: null,
    idleSuspendAfterDays: null,
  };
  t.match((await admin.get('/v1/organization')).body, initial);
  const given = {
    selfService: true,
    maxKeyLifetimeSeconds: 7_776_000,
    defaultKeyLifetimeSeconds: 2_592_000,
    idleSuspendAfterDays: 60,
  };
  t.match(await settings(admin, given), { status: 200, body: given });
  t.match((await admin.get('/v1/organization')).body, given);
  const { body: history } = await admin.get('/v1/history?action=organization.updated');
  t.same(history.data[0].details.changes, {
    selfService: { from: false, to: true },
    maxKeyLifetimeSeconds: { from: null, to: 7_776_000 },
    defaultKeyLifetimeSeconds: { from: null, to: 2_592_000 },
    idleSuspendAfterDays: { from: null, to: 60 },
  });
  t.match(await settings(admin, given), { status: 200 });
  t.equal((await admin.get('/v1/history?action=organization.updated')).body.data.length, 1, 'no change, no event');

  t.match(await settings(admin, { maxKeyLifetimeSeconds: 60 }), isInvalid('body.defaultKeyLifetimeSeconds'));
  t.match(await settings(admin, { defaultKeyLifetimeSeconds: 7_776_001 }), isInvalid('body.defaultKeyLifetimeSeconds'));
  for (const [member, values] of [
    ['maxKeyLifetimeSeconds', [0, -1, 1.5, '60', 1_000_000_001]],
    ['defaultKeyLifetimeSeconds', [0, true]],
    ['idleSuspendAfterDays', [0, 3_651]],
    ['selfService', [null, 'yes']],
  ] as const) {
    for (const value of values) t.match(await settings(admin, { [member]: value }), isInvalid(`body.${member}`));
  }
  t.match(
    await settings(admin, { maxKeyLifetimeSeconds: null, defaultKeyLifetimeSeconds: null, idleSuspendAfterDays: null }),
    { status: 200, body: { ...initial, selfService: true } },
  );
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
  await dbQuery(urls.superuser, 'update organizations set self_service = false, max_key_lifetime_seconds = 5');
  const { body: verified } = await admin.get('/v1/history/verify');
  t.match(verified, { valid: false });
  t.same(verified.stateDifferences.map(({ id, member }: Json) => [id, member]).sort(), [
    [organizationId, 'maxKeyLifetimeSeconds'],
    [organizationId, 'selfService'],
  ]);
});

t.test('every way to create a key gives it the default or maximum lifetime, and never more', async (t) => {
  const { admin } = await startService(t);
  await settings(admin, { maxKeyLifetimeSeconds: 3_600, defaultKeyLifetimeSeconds: 600 });
  const later = (seconds: number) => new Date(Date.now() + seconds * 1000).toISOString();
  const { body: key } = await admin.post('/v1/keys', {});
  t.equal(lifetimeOf(key), 600);
  const { body: history } = await admin.get(`/v1/keys/${key.id}/history`);
  t.match(history.data[0], { action: 'key.created', details: { expiresAt: key.expiresAt } });
  t.match(await admin.post('/v1/keys', { expiresAt: null }), isInvalid('body.expiresAt'));
  t.match(await admin.post('/v1/keys', { expiresAt: later(3_700) }), isInvalid('body.expiresAt'));
  t.match(await admin.post('/v1/keys', { expiresAt: later(-1) }), isInvalid('body.expiresAt'));
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read', 'write'] });
  t.same(partner.keys.map(lifetimeOf), [600, 600]);

  const path = `/v1/keys/${key.id}`;
  t.match(await admin.patch(path, { expiresAt: null }), isInvalid('body.expiresAt'));
  t.match(await admin.patch(path, { expiresAt: later(3_700) }), isInvalid('body.expiresAt'));
  t.match(await admin.patch(path, { expiresAt: later(3_000), name: 'Longer' }), { status: 200 });
  t.match(await admin.post(`${path}/rotate`, { expireOldAfterSeconds: 60 }), { status: 201 });

  await settings(admin, { maxKeyLifetimeSeconds: 3_600, defaultKeyLifetimeSeconds: null });
  const [read] = partner.keys;
  const { body: rotated } = await admin.post(`/v1/keys/${read.id}/rotate`);
  t.equal(lifetimeOf(rotated), 3_600);
  await settings(admin, { maxKeyLifetimeSeconds: null, defaultKeyLifetimeSeconds: 60 });
  await admin.delete(path);
  t.equal(lifetimeOf((await admin.post('/v1/keys', { expiresAt: null })).body), null, 'null is no expiry');
  t.match((await admin.get('/v1/history/verify')).body, { valid: true });
});

t.test('a new maximum lifetime kills no key, and does not stand in the way of other changes', async (t) => {
  const { admin, verifier, later } = await startService(t);
  const { body: endless } = await admin.post('/v1/keys', {});
  const { body: deleted } = await admin.post('/v1/keys', {});
  await admin.delete(`/v1/keys/${deleted.id}`);
  const past = async () => (await admin.get('/v1/keys?pastMaxLifetime=true')).body.data.map(({ id }: Json) => id);
  later(60_000);
  t.same(await past(), [], 'there is no maximum');
  await settings(admin, { maxKeyLifetimeSeconds: 30 });
  t.same(await past(), [endless.id]);
  t.match((await verifier.post('/v1/verify', { key: endless.key, permission: 'read' })).body, { code: 'valid' });
  const path = `/v1/keys/${endless.id}`;
  t.match(await admin.patch(path, { name: 'Renamed' }), { status: 200, body: { name: 'Renamed', expiresAt: null } });
  t.match(await admin.patch(path, { expiresAt: null, name: 'Again' }), { status: 200 }, 'null is what it has');
  t.match(await admin.post(`${path}/suspend`), { status: 200 });
  t.match(await admin.post(`${path}/resume`), { status: 200 });
  t.match(await admin.post(`/v1/keys/${deleted.id}/restore`), { status: 200, body: { expiresAt: null } });
  await admin.delete(`/v1/keys/${deleted.id}`);
  t.match(await admin.post(`${path}/rotate`, { expireOldAfterSeconds: 31 }), isInvalid('body.expireOldAfterSeconds'));
  t.match(await admin.post(`${path}/rotate`, { expireOldAfterSeconds: 30 }), { status: 201 });
  const { body: history } = await admin.get(`${path}/history?limit=1`);
  t.match(history.data[0], { action: 'key.rotated', details: { changes: { expiresAt: { from: null } } } });
});

t.test('the keys that a new maximum lifetime does not fit are listed, page by page, and no others', async (t) => {
  const { admin, later, clock } = await startService(t);
  const in_ = (seconds: number) => new Date(clock.nowMs() + seconds * 1000).toISOString();
  const rowOf = async (email: string) =>
    (await admin.post('/v1/partners', { email, permissions: ['read', 'write'] })).body.keys as Json[];
  const [endless, long] = await rowOf('a@p.example');
  const [short, expired] = await rowOf('b@p.example');
  const [suspended, deleted] = await rowOf('c@p.example');
  await admin.patch(`/v1/keys/${long.id}`, { expiresAt: in_(7_200) });
  await admin.patch(`/v1/keys/${short.id}`, { expiresAt: in_(3_000) });
  await admin.patch(`/v1/keys/${expired.id}`, { expiresAt: in_(30) });
  await admin.post(`/v1/keys/${suspended.id}/suspend`);
  await admin.delete(`/v1/keys/${deleted.id}`);
  later(60_000);
  await settings(admin, { maxKeyLifetimeSeconds: 3_600 });
  const list = async (query: string) => (await admin.get(`/v1/keys?${query}`)).body;
  const idsOf = ({ data }: Json) => data.map(({ id }: Json) => id);
  t.same(idsOf(await list('pastMaxLifetime=true')).sort(), [endless.id, long.id, suspended.id].sort());
  t.same(idsOf(await list('pastMaxLifetime=true&status=suspended')), [suspended.id]);
  const first = await list('pastMaxLifetime=true&limit=2');
  const rest = await list(`pastMaxLifetime=true&limit=2&cursor=${first.nextCursor}`);
  t.same([...idsOf(first), ...idsOf(rest)].sort(), [endless.id, long.id, suspended.id].sort());
  t.equal(idsOf(await list('pastMaxLifetime=false')).length, 5);

  // What the policies page does with such a key: an end that both sides can meet.
  await admin.patch(`/v1/keys/${endless.id}`, { expiresAt: in_(3_000) });
  t.same(idsOf(await list('pastMaxLifetime=true')).sort(), [long.id, suspended.id].sort());
});

t.test('an import follows the same rules, and names each entry that does not fit', async (t) => {
  const { admin } = await startService(t);
  await settings(admin, { maxKeyLifetimeSeconds: 3_600, defaultKeyLifetimeSeconds: 600 });
  const token = () => `foreign-${Math.random()}-${Math.random()}`;
  const far = new Date(Date.now() + 7_200_000).toISOString();
  const entries = [{ plaintext: token() }, { plaintext: token(), expiresAt: null }];
  t.match(await admin.post('/v1/keys/import', { entries }), isInvalid('body.entries[1].expiresAt'));
  t.match(
    await admin.post('/v1/keys/import', { entries: [{ plaintext: token(), expiresAt: far }] }),
    isInvalid('body.entries[0].expiresAt'),
  );
  const { status, body } = await admin.post('/v1/keys/import', { entries: entries.slice(0, 1) });
  t.equal(status, 201);
  t.same(body.data.map(lifetimeOf), [600]);
  t.match((await admin.get('/v1/history/verify')).body, { valid: true, stateDifferences: [] });
});
