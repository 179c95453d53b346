import { generateKeyring, parseKeyring } from '../src/crypto/keyring.ts';
import { mintToken } from '../src/crypto/token.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { createMemoryLimits } from '../src/verification/limits.ts';
import { type DecidedKey, decide, type RequestedUse, type VerdictCode } from '../src/verification/policy.ts';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

const now = new Date('2026-06-01T12:00:00.000Z');
const earlier = new Date(now.getTime() - 1);
const good: DecidedKey = {
  permission: 'read',
  expires_at: null,
  allowed_ips: [],
  scopes: ['a', 'b'],
  suspended_at: null,
  partner_suspended_at: null,
  deleted_at: null,
};

t.test('the reasons for a rejection are checked in a fixed order', async (t) => {
  const invalidInEveryWay: DecidedKey = {
    permission: 'read',
    deleted_at: earlier,
    suspended_at: earlier,
    partner_suspended_at: earlier,
    expires_at: earlier,
    allowed_ips: ['192.0.2.1'],
    scopes: ['a'],
  };
  const fixes: Array<[Partial<DecidedKey>, VerdictCode]> = [
    [{}, 'deleted'],
    [{ deleted_at: null }, 'suspended'],
    [{ suspended_at: null }, 'partner_suspended'],
    [{ partner_suspended_at: null }, 'expired'],
    [{ expires_at: null }, 'ip_not_allowed'],
    [{ allowed_ips: [] }, 'insufficient_permission'],
    [{ permission: 'write' }, 'insufficient_scope'],
    [{ scopes: ['b', 'a', 'c'] }, 'valid'],
  ];
  let key = invalidInEveryWay;
  for (const [cure, code] of fixes) {
    key = { ...key, ...cure };
    t.equal(decide(key, { permission: 'write', scopes: ['a', 'b'] }, now), code);
  }
});

t.test('read and write are separate permissions; only read_write has both', async (t) => {
  const table: Array<[DecidedKey['permission'], RequestedUse['permission'], VerdictCode]> = [
    ['read', 'read', 'valid'],
    ['read', 'write', 'insufficient_permission'],
    ['write', 'write', 'valid'],
    ['write', 'read', 'insufficient_permission'],
    ['read_write', 'read', 'valid'],
    ['read_write', 'write', 'valid'],
  ];
  for (const [permission, wanted, code] of table) {
    t.equal(decide({ ...good, permission }, { permission: wanted }, now), code, `${permission} asked to ${wanted}`);
  }
});

t.test('a key is expired from the exact time of its expiry', async (t) => {
  t.equal(decide({ ...good, expires_at: now }, { permission: 'read' }, now), 'expired');
  t.equal(decide({ ...good, expires_at: now }, { permission: 'read' }, earlier), 'valid');
});

t.test('only allowed addresses can use a key', async (t) => {
  const table: Array<[allowed: string[], ip: string | undefined, isAllowed: boolean]> = [
    [[], undefined, true],
    [['203.0.113.7'], undefined, false],
    [['203.0.113.7'], '203.0.113.7', true],
    [['203.0.113.7'], '203.0.113.8', false],
    [['203.0.113.0/24', '198.51.100.1'], '203.0.113.255', true],
    [['203.0.113.0/24'], '203.0.114.0', false],
    [['0.0.0.0/0'], '8.8.8.8', true],
    [['203.0.113.0/24'], '::ffff:203.0.113.9', true],
    [['203.0.113.0/24'], '::ffff:cb00:7109', true],
    [['203.0.113.0/24'], '0:0:0:0:0:ffff:203.0.113.9', true],
    [['203.0.113.0/24'], '::ffff:203.0.114.9', false],
    [['2001:db8::/32'], '2001:db8:1::1', true],
    [['2001:db8::/32'], '2001:DB8:0:0::1', true],
    [['2001:db8::/32'], '2001:db9::1', false],
    [['::1'], '::1', true],
    [['fe80::/10'], 'fe80::1%eth0', true],
    [['203.0.113.0/24'], 'fe80::1%eth0', false],
    [['203.0.113.0/24'], 'rubbish', false],
    [['::/0'], '203.0.113.9', false],
    [['::/0'], '2001:db8::1', true],
    [['::ffff:203.0.113.0/120'], '203.0.113.9', true],
    [['::ffff:203.0.113.0/120'], '203.0.114.9', false],
    [['0.0.0.0/0'], '2001:db8::1', false],
  ];
  for (const [allowed, ip, isAllowed] of table) {
    const code = decide({ ...good, allowed_ips: allowed }, { permission: 'read', ip }, now);
    t.equal(code, isAllowed ? 'valid' : 'ip_not_allowed', `${allowed.join(' ')} ← ${ip}`);
  }
});

t.test('the reply to a verification', async (t) => {
  const service = await startService(t);
  const { admin, operator, as, organizationId, urls } = service;
  const input = { email: 'p@p.example', permissions: ['read'], externalId: 'customer-4711' };
  const { body: partner } = await admin.post('/v1/partners', input);
  const [key] = partner.keys;
  const verify = async (presented: string, more: Record<string, unknown> = {}, client = service.verifier) => {
    const { status, body } = await client.post('/v1/verify', { key: presented, permission: 'read', ...more });
    t.equal(status, 200);
    return body;
  };
  const emptyFacts = {
    valid: false,
    keyId: null,
    organizationId: null,
    partnerId: null,
    partnerExternalId: null,
    partnerEmail: null,
    permission: null,
    scopes: null,
    name: null,
    metadata: null,
    expiresAt: null,
    dependsOnIp: null,
    rateLimit: null,
  };
  const facts = {
    keyId: key.id,
    organizationId,
    partnerId: partner.id,
    partnerExternalId: 'customer-4711',
    partnerEmail: 'p@p.example',
    permission: 'read',
    scopes: [],
    name: null,
    metadata: {},
    expiresAt: null,
    dependsOnIp: false,
  };

  await t.test('a valid key is returned with the facts that a backend needs', async (t) => {
    const rateLimit = { policy: 'owner', limit: 1000, windowSeconds: 60, remaining: 999, resetSeconds: 60 };
    t.same(await verify(key.key), { valid: true, code: 'valid', ...facts, rateLimit });
    const refused = { valid: false, code: 'insufficient_permission', ...facts, rateLimit: null };
    t.same(await verify(key.key, { permission: 'write' }), refused);
  });

  await t.test('a malformed key is rejected without a database query', async (t) => {
    const token = service.bootstrapped.verifierToken.reveal();
    const malformed = ['', 'lk_k_', `${key.key}x`, ` ${key.key}`, key.key.slice(0, -1), key.key.toUpperCase(), token];
    for (const presented of [...malformed, key.key.replace('lk_', 'sk_')]) {
      t.same(await verify(presented), { ...emptyFacts, code: 'malformed' });
    }
  });

  await t.test('an unknown id and a wrong secret both give not_found', async (t) => {
    const unknown = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal();
    const wrongSecret = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(key.id) }).reveal();
    t.same(await verify(unknown), { ...emptyFacts, code: 'not_found' });
    t.same(await verify(wrongSecret), { ...emptyFacts, code: 'not_found' });
    t.equal(service.hasher.runs, 4, 'only the bootstrap and the key were hashed: guessing costs no argon2id run');
  });

  await t.test("another organization's verifier gets no facts; a global verifier gets all of them", async (t) => {
    const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
    const input = { role: 'verifier', scopes: ['read'], name: 'v' };
    const { body: otherVerifier } = await operator.post('/v1/access-tokens', input, {
      'latchkey-organization': other.id,
    });
    const { body: global } = await operator.post('/v1/access-tokens', input);
    t.same(await verify(key.key, {}, as(otherVerifier.token)), { ...emptyFacts, code: 'not_found' });
    t.equal((await verify(key.key, {}, as(global.token))).code, 'valid');
  });

  await t.test('suspended, partner_suspended and deleted keys are rejected', async (t) => {
    await dbQuery(urls.superuser, 'update partners set suspended_at = now() where id = $1', [partner.id]);
    await eventually(async () => (await verify(key.key)).code === 'partner_suspended', 1_000);
    await dbQuery(urls.superuser, 'update api_keys set suspended_at = now() where id = $1', [key.id]);
    await eventually(async () => (await verify(key.key)).code === 'suspended', 1_000);
    t.equal((await as(key.key).get('/v1/self')).status, 401);
    await admin.delete(`/v1/keys/${key.id}`);
    t.same(await verify(key.key), { valid: false, code: 'deleted', ...facts, rateLimit: null });
  });

  await t.test('invalid input is a 400 with its path', async (t) => {
    for (const [body, path] of [
      [{ key: key.key }, 'body.permission'],
      [{ key: key.key, permission: 'read_write' }, 'body.permission'],
      [{ permission: 'read' }, 'body.key'],
      [{ key: key.key, permission: 'read', ip: 7 }, 'body.ip'],
      [{ key: key.key, permission: 'read', cost: 1_001 }, 'body.cost'],
      [{ key: key.key, permission: 'read', cost: -1 }, 'body.cost'],
      [{ key: key.key, permission: 'read', more: 1 }, 'body.more'],
    ] as const) {
      const reply = await service.verifier.post('/v1/verify', body);
      t.equal(reply.status, 400);
      t.equal(reply.body.errors[0].path, path);
    }
  });
});

t.test('under a keyring entry declared as lost, argon2id verifies a key once, and its tag is renewed', async (t) => {
  const bytes = (fill: number) => Buffer.alloc(32, fill).toString('base64');
  const old = await startService(t, { keyring: parseKeyring(`old:${bytes(1)}`) });
  const { body: key } = await old.admin.post('/v1/keys', {});
  const keyring = parseKeyring(`new:${bytes(2)}`, ['old']);
  const renewed = await startService(t, { keyring, urls: old.urls });
  const runs = () => renewed.hasher.runs;
  const input = { role: 'verifier', scopes: ['read'], name: 'For all' };
  const forAll = renewed.as((await renewed.operator.post('/v1/access-tokens', input)).body.token);
  const verify = (presented: string) => forAll.post('/v1/verify', { key: presented, permission: 'read' });

  const before = runs();
  const otherSecret = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(key.id) }).reveal();
  t.equal((await verify(otherSecret)).body.code, 'not_found');
  t.equal((await verify(key.key)).body.code, 'valid');
  const afterFirst = runs();
  t.ok(afterFirst > before, 'argon2id has run');
  const [row] = await dbQuery(old.urls.superuser, 'select tag_keyring_id, mac_keyring_id from api_keys where id = $1', [
    key.id,
  ]);
  t.same(row, { tag_keyring_id: 'new', mac_keyring_id: 'new' });
  t.equal((await verify(key.key)).body.code, 'valid');
  t.equal(runs(), afterFirst, 'later verifications only use the tag');
});

t.test('guessing at a key under a lost entry causes only a few argon2id runs', async (t) => {
  const keyring = parseKeyring(generateKeyring(new Date()), ['gone']);
  const service = await startService(t, { keyring });
  const { body: key } = await service.admin.post('/v1/keys', {});
  const lost = "update api_keys set tag_keyring_id = 'gone', mac_keyring_id = 'gone' where id = $1";
  await dbQuery(service.urls.superuser, lost, [key.id]);
  const before = service.hasher.runs;
  const otherSecret = () => mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(key.id) }).reveal();
  const statuses: number[] = [];
  for (let attempt = 0; attempt < 20; attempt++) {
    const { status } = await service.verifier.post('/v1/verify', { key: otherSecret(), permission: 'read' });
    statuses.push(status);
  }
  t.equal(service.hasher.runs - before, 5, 'five failures in a minute, then no more runs');
  t.same(new Set(statuses), new Set([200, 503]));
});

t.test('a new window lasts its full length, even if it began between two milliseconds', async (t) => {
  let nowMs = 0;
  const limits = createMemoryLimits(() => nowMs);
  for (let index = 1; index <= 100; index++) {
    nowMs = index * 1_234.567_89;
    const count = await limits.count([{ id: `owner_${index}`, requests: 1, windowSeconds: 60 }], 1);
    t.equal(count.resetSeconds, 60);
  }
});
