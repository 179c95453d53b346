import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

const many = 1_000_000;

t.test('a caller is limited on the management endpoints by its credential', async (t) => {
  const { admin, verifier, operator } = await startService(t, {
    limits: { callerLimit: 3, addressLimit: many, revealLimit: many },
  });
  const replies = [];
  for (let round = 0; round < 5; round++) replies.push(await admin.get('/v1/keys'));
  t.same(
    replies.map((reply) => reply.status),
    [200, 200, 200, 429, 429],
  );
  t.same(
    replies.map((reply) => reply.headers['ratelimit-policy']),
    Array.from({ length: 5 }, () => '"caller";q=3;w=60'),
  );
  t.match(replies[0]?.headers['ratelimit'], /^"caller";r=2;t=\d+$/);
  t.match(replies[3]?.headers['ratelimit'], /^"caller";r=0;t=\d+$/);
  t.equal(replies[3]?.body.code, 'rate_limited');
  const wait = Number(replies[3]?.headers['retry-after']);
  t.ok(wait >= 1 && wait <= 60);
  t.equal((await operator.get('/v1/organizations')).status, 200, 'another caller is not limited');
  for (let round = 0; round < 6; round++) {
    t.equal((await verifier.post('/v1/verify', { key: 'x', permission: 'read' })).status, 200, 'verify is not counted');
    t.equal((await admin.get('/v1/self')).status, 200, 'self is not counted');
  }
});

t.test('rejected tokens are counted by address, and a valid one still passes', async (t) => {
  const { app, admin, as } = await startService(t, {
    limits: { callerLimit: many, addressLimit: 3, revealLimit: many },
  });
  const { body: key } = await admin.post('/v1/keys', {});
  const unknownCaller = as('nonsense');
  const statuses = [];
  for (let round = 0; round < 5; round++) statuses.push((await unknownCaller.get('/v1/keys')).status);
  t.same(statuses, [401, 401, 401, 429, 429]);
  t.equal((await unknownCaller.get('/v1/self')).status, 429);
  t.equal((await admin.get('/v1/keys')).status, 200, 'from the same address');
  t.equal((await as(key.key).get('/v1/self')).status, 200);
  const fromOtherAddress = {
    url: '/v1/keys',
    headers: { authorization: 'Bearer nonsense' },
    remoteAddress: '192.0.2.9',
  };
  t.equal((await app.inject(fromOtherAddress)).statusCode, 401, 'another address has its own count');
});

t.test('requests with an invalid gateway token are also counted by address', async (t) => {
  const { app, admin, verifier, logLines } = await startService(t, {
    limits: { callerLimit: many, addressLimit: 4, revealLimit: many },
  });
  const { body: key } = await admin.post('/v1/keys', {});
  const authorize = async (gateway: Record<string, string>, url = '/v1/authorize') => {
    const headers = { ...gateway, 'x-api-key': key.key, 'x-forwarded-method': 'GET' };
    return (await app.inject({ url, headers })).statusCode;
  };
  const bad = { 'x-latchkey-token': verifier.token.replace(/.$/, '-') };
  const statuses = [];
  for (const gateway of [bad, {}, bad])
    statuses.push(await authorize(gateway), await authorize(gateway, '/v1/authorize/any'));
  t.same(statuses, [503, 503, 503, 503, 429, 429]);
  t.equal(logLines.filter((line) => line.includes('"stack"')).length, 4, 'the log is not flooded');
  t.equal(await authorize({ 'x-latchkey-token': verifier.token }), 200, 'a valid token from the same address');
});

t.test('verifying wrong keys is never counted against an address', async (t) => {
  const { verifier } = await startService(t, { limits: { callerLimit: many, addressLimit: 2, revealLimit: many } });
  for (let round = 0; round < 10; round++) {
    const { status, body } = await verifier.post('/v1/verify', { key: 'nonsense', permission: 'read' });
    t.same([status, body.code], [200, 'malformed']);
  }
});

t.test('reveals are limited for each admin, and a rejected reveal is not recorded', async (t) => {
  const { admin } = await startService(t, { limits: { callerLimit: many, addressLimit: many, revealLimit: 2 } });
  const { body: key } = await admin.post('/v1/keys', {});
  const statuses = [];
  for (let round = 0; round < 4; round++) statuses.push((await admin.post(`/v1/keys/${key.id}/reveal`)).status);
  t.same(statuses, [200, 200, 429, 429]);
  const { body: history } = await admin.get('/v1/history?action=key.revealed');
  t.equal(history.data.length, 2);
  const input = { role: 'admin', scopes: ['write'], name: 'Bob', email: 'bob@example.com' };
  t.equal((await admin.post('/v1/access-tokens', input)).status, 201, 'other requests are not limited');
});

t.test('a forwarded client address is trusted only from a trusted proxy', async (t) => {
  const trusted = await startService(t, { trustProxy: ['127.0.0.1'] });
  const untrusted = await startService(t);
  const forwarded = { 'x-forwarded-for': '203.0.113.7' };
  for (const [service, ip] of [
    [trusted, '203.0.113.7'],
    [untrusted, '127.0.0.1'],
  ] as const) {
    await service.admin.post('/v1/keys', {}, forwarded);
    t.equal((await service.admin.get('/v1/history?limit=1')).body.data[0].request.ip, ip);
  }
});

t.test('reveals are limited by person: tokens that an admin creates for itself share its limit', async (t) => {
  const { admin, operator, as, organizationId } = await startService(t, {
    limits: { callerLimit: many, addressLimit: many, revealLimit: 3 },
  });
  const { body: key } = await admin.post('/v1/keys', {});
  const input = (name: string) => ({
    role: 'admin',
    scopes: ['read', 'write', 'reveal'],
    name,
    email: `${name}@example.com`,
  });
  const child = as((await admin.post('/v1/access-tokens', input('child'))).body.token);
  const grandchild = as((await child.post('/v1/access-tokens', input('grandchild'))).body.token);
  const reveal = async (client: typeof admin) => (await client.post(`/v1/keys/${key.id}/reveal`)).status;
  t.same([await reveal(child), await reveal(grandchild), await reveal(admin)], [200, 200, 200]);
  const laterToken = as((await child.post('/v1/access-tokens', input('late'))).body.token);
  t.same([await reveal(laterToken), await reveal(grandchild), await reveal(admin)], [429, 429, 429]);

  const named = { 'latchkey-organization': organizationId };
  for (const name of ['bob', 'eve']) {
    const other = as((await operator.post('/v1/access-tokens', input(name), named)).body.token);
    t.same([await reveal(other), await reveal(other)], [200, 200], 'an operator creates tokens for different admins');
  }
});

for (const hours of [-5, 5]) {
  t.test(`if the wall clock is set by ${hours} hours, windows neither last longer nor end earlier`, async (t) => {
    const { admin, as } = await startService(t, {
      limits: { callerLimit: 2, addressLimit: 1, revealLimit: 1 },
    });
    const unknownCaller = as('nonsense');
    const { body: key } = await admin.post('/v1/keys', {});
    t.equal((await unknownCaller.get('/v1/keys')).status, 401);
    t.equal((await admin.post(`/v1/keys/${key.id}/reveal`)).status, 200);
    const wallClock = Date.now;
    t.teardown(() => {
      Date.now = wallClock;
    });
    Date.now = () => wallClock() + hours * 3_600_000;
    const replies = [await unknownCaller.get('/v1/keys'), await admin.get('/v1/keys')];
    Date.now = wallClock;
    for (const { status, headers } of replies) {
      t.equal(status, 429);
      const wait = Number(headers['retry-after']);
      t.ok(wait >= 50 && wait <= 60, `Retry-After is ${wait}`);
    }
  });
}

t.test('rejected tokens are counted by the /64 network of an IPv6 address', async (t) => {
  const { app } = await startService(t, { limits: { callerLimit: many, addressLimit: 2, revealLimit: many } });
  const from = async (remoteAddress: string) => {
    const headers = { authorization: 'Bearer nonsense' };
    return (await app.inject({ url: '/v1/keys', headers, remoteAddress })).statusCode;
  };
  t.same([await from('2001:db8:0:1::1'), await from('2001:db8:0:1:ffff::2')], [401, 401]);
  t.equal(await from('2001:db8:0:1::3'), 429);
  t.equal(await from('2001:db8:0:2::3'), 401);
  t.same([await from('::ffff:192.0.2.1'), await from('192.0.2.1'), await from('192.0.2.1')], [401, 401, 429]);
});
