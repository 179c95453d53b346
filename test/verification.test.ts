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
  suspended_at: null,
  partner_suspended_at: null,
  deleted_at: null,
};

t.test('what decides about a key, in its order', async (t) => {
  const everythingWrong: DecidedKey = {
    permission: 'read',
    deleted_at: earlier,
    suspended_at: earlier,
    partner_suspended_at: earlier,
    expires_at: earlier,
    allowed_ips: ['192.0.2.1'],
  };
  const cured: Array<[Partial<DecidedKey>, VerdictCode]> = [
    [{}, 'deleted'],
    [{ deleted_at: null }, 'suspended'],
    [{ suspended_at: null }, 'partner_suspended'],
    [{ partner_suspended_at: null }, 'expired'],
    [{ expires_at: null }, 'ip_not_allowed'],
    [{ allowed_ips: [] }, 'insufficient_permission'],
    [{ permission: 'write' }, 'valid'],
  ];
  let key = everythingWrong;
  for (const [cure, code] of cured) {
    key = { ...key, ...cure };
    t.equal(decide(key, { permission: 'write' }, now), code);
  }
});

t.test('read and write are independent; only read_write is both', async (t) => {
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

t.test('a key has expired at the very moment of its expiry', async (t) => {
  t.equal(decide({ ...good, expires_at: now }, { permission: 'read' }, now), 'expired');
  t.equal(decide({ ...good, expires_at: now }, { permission: 'read' }, earlier), 'valid');
});

t.test('allowed addresses', async (t) => {
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

t.test('the answer over the wire', async (t) => {
  const service = await startService(t);
  const { admin, operator, as, organizationId, urls } = service;
  const { body: partner } = await admin.post('/v1/partners', { email: 'p@p.example', permissions: ['read'] });
  const [key] = partner.keys;
  const ask = async (presented: string, more: Record<string, unknown> = {}, who = service.verifier) => {
    const { status, body } = await who.post('/v1/verify', { key: presented, permission: 'read', ...more });
    t.equal(status, 200);
    return body;
  };
  const nothing = {
    valid: false,
    keyId: null,
    organizationId: null,
    partnerId: null,
    partnerEmail: null,
    permission: null,
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
    partnerEmail: 'p@p.example',
    permission: 'read',
    name: null,
    metadata: {},
    expiresAt: null,
    dependsOnIp: false,
  };

  await t.test('valid, with what the backend needs to know', async (t) => {
    const rateLimit = { policy: 'owner', limit: 1000, windowSeconds: 60, remaining: 999, resetSeconds: 60 };
    t.same(await ask(key.key), { valid: true, code: 'valid', ...facts, rateLimit });
    const refused = { valid: false, code: 'insufficient_permission', ...facts, rateLimit: null };
    t.same(await ask(key.key, { permission: 'write' }), refused);
  });

  await t.test('malformed, without asking the database', async (t) => {
    const token = service.bootstrapped.verifierToken.reveal();
    const malformed = ['', 'lk_k_', `${key.key}x`, ` ${key.key}`, key.key.slice(0, -1), key.key.toUpperCase(), token];
    for (const presented of [...malformed, key.key.replace('lk_', 'sk_')]) {
      t.same(await ask(presented), { ...nothing, code: 'malformed' });
    }
  });

  await t.test('not_found for an unknown id and for a wrong secret alike', async (t) => {
    const unknown = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal();
    const wrongSecret = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(key.id) }).reveal();
    t.same(await ask(unknown), { ...nothing, code: 'not_found' });
    t.same(await ask(wrongSecret), { ...nothing, code: 'not_found' });
    t.equal(
      service.hasher.runs,
      4,
      'only the bootstrap and the key were ever hashed: nobody buys argon2id by guessing',
    );
  });

  await t.test(
    "another organization's verifier learns nothing; a verifier for all organizations learns everything",
    async (t) => {
      const { body: other } = await operator.post('/v1/organizations', { name: 'Other' });
      const input = { role: 'verifier', scopes: ['read'], name: 'v' };
      const { body: theirs } = await operator.post('/v1/access-tokens', input, { 'latchkey-organization': other.id });
      const { body: global } = await operator.post('/v1/access-tokens', input);
      t.same(await ask(key.key, {}, as(theirs.token)), { ...nothing, code: 'not_found' });
      t.equal((await ask(key.key, {}, as(global.token))).code, 'valid');
    },
  );

  await t.test('suspended, partner_suspended, deleted', async (t) => {
    await dbQuery(urls.superuser, 'update partners set suspended_at = now() where id = $1', [partner.id]);
    await eventually(async () => (await ask(key.key)).code === 'partner_suspended', 1_000);
    await dbQuery(urls.superuser, 'update api_keys set suspended_at = now() where id = $1', [key.id]);
    await eventually(async () => (await ask(key.key)).code === 'suspended', 1_000);
    t.equal((await as(key.key).get('/v1/self')).status, 401);
    await admin.delete(`/v1/keys/${key.id}`);
    t.same(await ask(key.key), { valid: false, code: 'deleted', ...facts, rateLimit: null });
  });

  await t.test('bad input is a 400 with its path', async (t) => {
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

t.test('where the operator names a keyring entry as lost, argon2id vouches once and the tag is renewed', async (t) => {
  const bytes = (fill: number) => Buffer.alloc(32, fill).toString('base64');
  const old = await startService(t, { keyring: parseKeyring(`old:${bytes(1)}`) });
  const { body: key } = await old.admin.post('/v1/keys', {});
  const keyring = parseKeyring(`new:${bytes(2)}`, ['old']);
  const renewed = await startService(t, { keyring, urls: old.urls });
  const runs = () => renewed.hasher.runs;
  const input = { role: 'verifier', scopes: ['read'], name: 'For all' };
  const forAll = renewed.as((await renewed.operator.post('/v1/access-tokens', input)).body.token);
  const ask = (presented: string) => forAll.post('/v1/verify', { key: presented, permission: 'read' });

  const before = runs();
  const wrong = mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(key.id) }).reveal();
  t.equal((await ask(wrong)).body.code, 'not_found');
  t.equal((await ask(key.key)).body.code, 'valid');
  const afterFirst = runs();
  t.ok(afterFirst > before, 'argon2id has run');
  const [row] = await dbQuery(old.urls.superuser, 'select tag_keyring_id, mac_keyring_id from api_keys where id = $1', [
    key.id,
  ]);
  t.same(row, { tag_keyring_id: 'new', mac_keyring_id: 'new' });
  t.equal((await ask(key.key)).body.code, 'valid');
  t.equal(runs(), afterFirst, 'from now on the tag is enough');
});

t.test('nobody can buy argon2id runs by guessing at a key whose entry is named as lost', async (t) => {
  const keyring = parseKeyring(generateKeyring(new Date()), ['gone']);
  const service = await startService(t, { keyring });
  const { body: key } = await service.admin.post('/v1/keys', {});
  const lost = "update api_keys set tag_keyring_id = 'gone', mac_keyring_id = 'gone' where id = $1";
  await dbQuery(service.urls.superuser, lost, [key.id]);
  const before = service.hasher.runs;
  const wrong = () => mintToken({ prefix: 'lk', kind: 'k', idSuffix: idSuffix(key.id) }).reveal();
  const statuses: number[] = [];
  for (let attempt = 0; attempt < 20; attempt++) {
    const { status } = await service.verifier.post('/v1/verify', { key: wrong(), permission: 'read' });
    statuses.push(status);
  }
  t.equal(service.hasher.runs - before, 5, 'five failures in a minute, then no more');
  t.same(new Set(statuses), new Set([200, 503]));
});

t.test(
  'a window that has just begun ends after its own length, whatever fraction of a millisecond it began at',
  async (t) => {
    let nowMs = 0;
    const limits = createMemoryLimits(() => nowMs);
    for (let index = 1; index <= 100; index++) {
      nowMs = index * 1_234.567_89;
      const count = await limits.count([{ id: `owner_${index}`, requests: 1, windowSeconds: 60 }], 1);
      t.equal(count.resetSeconds, 60);
    }
  },
);
