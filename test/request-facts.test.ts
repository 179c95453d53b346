import { startService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { listen, openRaw, requestText } from './support/raw-client.ts';
import { t } from './support/tap.ts';

// The sender of a request is known from its arrival, even if the client disconnects before the reply.

t.test('a change by a client that disconnected is recorded with its address', async (t) => {
  const { app, admin } = await startService(t);
  const port = await listen(app);
  const rounds = 8;
  for (let round = 0; round < rounds; round++) {
    const { body } = await admin.post('/v1/partners', { email: `p${round}@example.com`, permissions: ['read'] });
    const client = await openRaw(t, port);
    const headers = { 'user-agent': `gone-${round}` };
    await client.sendAndReset(requestText('POST', `/v1/partners/${body.id}/suspend`, { ...admin, headers }));
  }
  const suspended = await eventually(async () => {
    const { status, body } = await admin.get('/v1/history?action=partner.suspended');
    t.equal(status, 200, 'history can be read');
    return body.data?.length === rounds && body.data;
  });
  for (const { request } of suspended) t.match(request, { ip: '127.0.0.1', userAgent: /^gone-\d$/ });
});

t.test('a refused attempt of a client that disconnected is recorded with its address', async (t) => {
  const { app, admin, verifier, later } = await startService(t);
  const port = await listen(app);
  for (let round = 0; round < 8; round++) {
    await (await openRaw(t, port)).sendAndReset(requestText('GET', '/v1/partners', verifier));
  }
  later(1_000);
  const refused = await eventually(async () => {
    const { body } = await admin.get('/v1/history?kind=refused');
    return body.data[0]?.count === 8 && body.data;
  });
  t.match(refused, [{ lastIp: '127.0.0.1' }]);
});

t.test('an invalid token of a client that disconnected is no server error, and counts for its address', async (t) => {
  const limits = { callerLimit: 1e6, addressLimit: 4, revealLimit: 1e6 };
  const { app, as, logLines } = await startService(t, { limits });
  const port = await listen(app);
  for (let round = 0; round < 4; round++) {
    const client = await openRaw(t, port);
    await client.sendAndReset(requestText('GET', '/v1/keys', { token: 'nonsense' }));
    await eventually(async () => logLines.filter((line) => line.includes('A credential was rejected.')).length > round);
  }
  t.equal((await as('nonsense').get('/v1/keys')).status, 429);
  t.same(
    logLines.filter((line) => line.includes('"level":50') || line.includes('"stack"')),
    [],
  );
});

t.test('X-Forwarded-For: ports are removed, and an invalid entry ends the walk at the last valid hop', async (t) => {
  const { app, admin, verifier } = await startService(t, { trustProxy: ['127.0.0.1', '10.0.0.0/8', 'fd00::/8'] });
  const { body: key } = await admin.post('/v1/keys', { allowedIps: ['203.0.113.7'] });
  const table: Array<[forwarded: string, ip: string, status: number]> = [
    ['203.0.113.7', '203.0.113.7', 200],
    ['198.51.100.1, 203.0.113.7', '203.0.113.7', 200],
    ['203.0.113.7, 10.1.2.3', '203.0.113.7', 200],
    ['203.0.113.7, fd00::1', '203.0.113.7', 200],
    ['::ffff:203.0.113.7', '203.0.113.7', 200],
    ['203.0.113.7,', '127.0.0.1', 403],
    ['203.0.113.7, ', '127.0.0.1', 403],
    ['', '127.0.0.1', 403],
    ['203.0.113.7, unknown', '127.0.0.1', 403],
    ['203.0.113.7, _hidden, 10.1.2.3', '10.1.2.3', 403],
    [`203.0.113.7, ${'9'.repeat(4_000)}`, '127.0.0.1', 403],
    ['203.0.113.7, 198.51.100.1', '198.51.100.1', 403],
    ['fe80::1%eth0', 'fe80::1', 403],
    // The form of Azure and others.
    ['203.0.113.7:51234', '203.0.113.7', 200],
    ['[::ffff:203.0.113.7]:51234', '203.0.113.7', 200],
    ['[2001:db8::1]:443', '2001:db8::1', 403],
    ['203.0.113.7:1, 10.1.2.3:2, [fd00::1]:3', '203.0.113.7', 200],
    ['203.0.113.7, 10.1.2.3:', '127.0.0.1', 403],
    ['203.0.113.7, 10.1.2.3:x', '127.0.0.1', 403],
  ];
  for (const [forwarded, ip, status] of table) {
    const headers = { 'x-forwarded-for': forwarded };
    const input = {
      ...headers,
      'x-forwarded-method': 'GET',
      'x-latchkey-token': verifier.token,
      'x-api-key': key.key,
    };
    t.equal((await app.inject({ url: '/v1/authorize', headers: input })).statusCode, status, forwarded.slice(0, 60));
    await admin.post('/v1/partners', { email: `${Math.random()}@example.com`, permissions: ['read'] }, headers);
    const { body } = await admin.get('/v1/history?action=partner.created&limit=1');
    t.equal(body.data[0].request.ip, ip, forwarded.slice(0, 60));
  }
});

t.test('an IPv6 network contains no IPv4 address: ::/0 only trusts proxies reached by IPv6', async (t) => {
  const { app, admin } = await startService(t, { trustProxy: ['::/0'] });
  const table: Array<[peer: string, ip: string]> = [
    ['127.0.0.1', '127.0.0.1'],
    ['::ffff:127.0.0.1', '127.0.0.1'],
    ['::1', '203.0.113.7'],
  ];
  for (const [peer, ip] of table) {
    await app.inject({
      method: 'POST',
      url: '/v1/partners',
      remoteAddress: peer,
      headers: { authorization: `Bearer ${admin.token}`, 'x-forwarded-for': '203.0.113.7' },
      payload: { email: `${Math.random()}@example.com`, permissions: ['read'] },
    });
    const { body } = await admin.get('/v1/history?action=partner.created&limit=1');
    t.equal(body.data[0].request.ip, ip, peer);
  }
});
