import fc from 'fast-check';
import type { Test } from 'tap';
import { clientAddress } from '../src/lib/ip-address.ts';
import { type VerdictCode, verdictCodes } from '../src/verification/policy.ts';
import { startService, type TestService } from './support/app.ts';
import { startBackend } from './support/hook.ts';
import { t } from './support/tap.ts';

// Keys and addresses come from strangers through a backend, so invalid ones are never the backend's fault.

const hostileKeys: Record<string, string> = {
  empty: '',
  'one character more than a thousand': 'x'.repeat(1_001),
  'almost the maximum body': 'x'.repeat(60_000),
  'U+0000': 'lk_k_\u0000',
  'only U+0000': '\u0000'.repeat(500),
  'a lone surrogate': 'lk_k_\ud800',
  'a trailing surrogate': '\udc00',
  'not ASCII': 'clé à molette 🔑',
  'line breaks': 'a\r\nb',
  'another quote': '"}{"',
};

/** Sends JSON in which lone surrogates are escaped. */
const verifyWith = async ({ verifier, app }: TestService, path: string, body: unknown) => {
  const headers = { authorization: `Bearer ${verifier.token}`, 'content-type': 'application/json' };
  const response = await app.inject({ method: 'POST', url: path, headers, payload: JSON.stringify(body) });
  return { status: response.statusCode, body: response.json() };
};

t.test('any text as a key is malformed, never a bad request of the backend', async (t) => {
  const service = await startService(t);
  for (const [what, key] of Object.entries(hostileKeys)) {
    const { status, body } = await verifyWith(service, '/v1/verify', { key, permission: 'read' });
    t.match({ status, code: body.code, valid: body.valid }, { status: 200, code: 'malformed', valid: false }, what);
    const introspected = await service.app.inject({
      method: 'POST',
      url: '/v1/introspect',
      headers: {
        authorization: `Bearer ${service.verifier.token}`,
        'content-type': 'application/x-www-form-urlencoded',
      },
      payload: String(new URLSearchParams({ token: key })),
    });
    t.equal(introspected.statusCode, 200, what);
    t.same(introspected.json(), { active: false }, what);
  }
  const { body: good } = await service.admin.post('/v1/keys', {});
  const keys = [good.key, ...Object.values(hostileKeys), good.key];
  const entries = keys.map((key) => ({ key, permission: 'read' }));
  const { status, body } = await verifyWith(service, '/v1/verify/batch', { entries });
  t.equal(status, 200);
  t.same(
    body.data.map(({ code }: { code: string }) => code),
    ['valid', ...Object.keys(hostileKeys).map(() => 'malformed'), 'valid'],
  );
});

t.test('verification replies 200 to every text as key, and every text or null as address', async (t) => {
  const service = await startService(t);
  const { body: good } = await service.admin.post('/v1/keys', { allowedIps: ['203.0.113.0/24'] });
  const key = fc.oneof(fc.string({ unit: 'binary' }), fc.string({ unit: 'grapheme' }), fc.constant(good.key));
  const ip = fc.oneof(fc.string({ unit: 'binary' }), fc.ipV4(), fc.ipV6(), fc.constantFrom(null, undefined, ''));
  const entries = fc.array(fc.record({ key, ip, permission: fc.constantFrom('read', 'write') }), { minLength: 1 });
  const areAnswered = fc.asyncProperty(entries, async (entries) => {
    const [first] = entries;
    const { status, body } = await verifyWith(service, '/v1/verify', first);
    const batch = await verifyWith(service, '/v1/verify/batch', { entries });
    const codes = batch.body.data.map(({ code }: { code: string }) => code);
    if (status !== 200 || batch.status !== 200 || codes[0] !== body.code) return false;
    return codes.every((code: string) => verdictCodes.includes(code as VerdictCode));
  });
  await fc.assert(areAnswered, { numRuns: 300 });
  t.pass('every reply had status 200');
});

t.test('a key of another type, a missing key and a forbidden name are bad requests', async (t) => {
  const service = await startService(t);
  for (const key of [1, null, true, [], {}, undefined]) {
    const { status, body } = await verifyWith(service, '/v1/verify', { key, permission: 'read' });
    t.match({ status, path: body.errors[0].path }, { status: 400, path: 'body.key' }, JSON.stringify(key));
  }
  const { app, verifier } = service;
  const poisoned = await app.inject({
    method: 'POST',
    url: '/v1/verify',
    headers: { authorization: `Bearer ${verifier.token}`, 'content-type': 'application/json' },
    payload: '{"key":"\\u0000","permission":"read","__proto__":{}}',
  });
  t.equal(poisoned.statusCode, 400);
});

t.test('a stored name cannot contain U+0000', async (t) => {
  const { admin } = await startService(t);
  t.match(await admin.post('/v1/keys', { name: 'a\u0000' }), {
    status: 400,
    body: { errors: [{ path: 'body.name' }] },
  });
});

t.test('the client address is found in the forms of proxies and Node', async (t) => {
  for (const [presented, address] of [
    ['203.0.113.7', '203.0.113.7'],
    ['203.0.113.7:5678', '203.0.113.7'],
    [' 203.0.113.7 ', '203.0.113.7'],
    ['[2001:db8::1]', '2001:db8::1'],
    ['[2001:db8::1]:443', '2001:db8::1'],
    ['2001:db8::1', '2001:db8::1'],
    ['fe80::1%eth0', 'fe80::1'],
    ['[fe80::1%eth0]:80', 'fe80::1'],
    ['::ffff:1.2.3.4', '::ffff:1.2.3.4'],
    ['unknown', undefined],
    ['_hidden', undefined],
    ['', undefined],
    ['1.2.3.4, 5.6.7.8', undefined],
    ['1.2.3.4:', undefined],
    ['300.1.1.1', undefined],
    ['[1.2.3.4', undefined],
    [`${'1'.repeat(5_000)}`, undefined],
    [undefined, undefined],
  ] as const) {
    t.equal(clientAddress(presented), address, presented?.slice(0, 40) ?? 'none');
  }
});

const unknownAddresses = [null, 'unknown', '', '_gateway', 'fe80::1%eth0', '300.1.1.1', 'x'.repeat(2_000), '\u0000'];
const allowedForms = ['203.0.113.7', '203.0.113.7:5678', '::ffff:203.0.113.7', '[::ffff:203.0.113.7]:443'];

t.test('an invalid address counts as unknown, and matters only to a key with allowedIps', async (t) => {
  const service = await startService(t);
  const { body: free } = await service.admin.post('/v1/keys', {});
  const { body: bound } = await service.admin.post('/v1/keys', { allowedIps: ['203.0.113.0/24', '2001:db8::/32'] });
  const codes = async (ip: string | null) => {
    const entries = [free, bound].map(({ key }) => ({ key, permission: 'read', ip }));
    const batch = await verifyWith(service, '/v1/verify/batch', { entries });
    const single = await Promise.all(entries.map((entry) => verifyWith(service, '/v1/verify', entry)));
    t.same(
      single.map(({ body }) => body.code),
      batch.body.data.map(({ code }: { code: string }) => code),
    );
    return single.map(({ body }) => body.code);
  };
  for (const ip of unknownAddresses) t.same(await codes(ip), ['valid', 'ip_not_allowed'], ip?.slice(0, 40) ?? 'null');
  for (const ip of [...allowedForms, '[2001:db8::7]:443']) t.same(await codes(ip), ['valid', 'valid'], ip);
  const wrongType = await verifyWith(service, '/v1/verify', { key: free.key, permission: 'read', ip: 7 });
  t.match(wrongType, { status: 400, body: { errors: [{ path: 'body.ip' }] } });
});

t.test('a deleted key used from an odd address: history has the address, or null', async (t) => {
  const service = await startService(t);
  const { admin, verification } = service;
  for (const [ip, recorded] of [
    ['[2001:db8::1]:443', '2001:db8::1'],
    ['unknown', null],
  ]) {
    const { body: key } = await admin.post('/v1/keys', {});
    await admin.delete(`/v1/keys/${key.id}`);
    await verifyWith(service, '/v1/verify', { key: key.key, permission: 'read', ip });
    await verification.usage.flush();
    const { body: history } = await admin.get(`/v1/keys/${key.id}/history?limit=1`);
    t.match(history.data[0], { action: 'key.used_after_deletion', details: { ip: recorded } });
  }
});

/** A listening service, and a backend whose hook trusts forwarded addresses. */
async function startProtected(t: Test) {
  const service = await startService(t, { trustProxy: ['127.0.0.1'] });
  const url = await service.app.listen({ port: 0, host: '127.0.0.1' });
  const backend = await startBackend(t, { url, token: service.verifier.token }, undefined, { trustProxy: true });
  return { service, url, backend };
}

t.test('the hook and the gateway route read addresses in the same way', async (t) => {
  const { service, url, backend } = await startProtected(t);
  const { body: free } = await service.admin.post('/v1/keys', {});
  const { body: bound } = await service.admin.post('/v1/keys', { allowedIps: ['203.0.113.0/24'] });
  const statuses = async (forwarded: string) => {
    const of = async (key: string, at: string, more: Record<string, string>) =>
      (await fetch(at, { headers: { 'x-api-key': key, 'x-forwarded-for': forwarded, ...more } })).status;
    const gateway = { 'x-latchkey-token': service.verifier.token, 'x-forwarded-method': 'GET' };
    return [
      await of(free.key, `${backend.url}/hello`, {}),
      await of(bound.key, `${backend.url}/hello`, {}),
      await of(free.key, `${url}/v1/authorize`, gateway),
      await of(bound.key, `${url}/v1/authorize`, gateway),
    ];
  };
  t.same(await statuses('203.0.113.7'), [200, 200, 200, 200]);
  t.same(await statuses('unknown'), [200, 403, 200, 403]);
  t.same(await statuses('fe80::1%eth0'), [200, 403, 200, 403]);
});
