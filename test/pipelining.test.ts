import { startService } from './support/app.ts';
import { eventually } from './support/process.ts';
import { listen, openRaw, requestText, statusesIn } from './support/raw-client.ts';
import { t } from './support/tap.ts';

t.test('complete requests get their replies before the connection is closed because of invalid data', async (t) => {
  const { app, admin } = await startService(t, { receiveTimeoutMs: 600 });
  const port = await listen(app);
  const create = requestText('POST', '/v1/keys', { ...admin, body: {} });
  const list = requestText('GET', '/v1/keys', admin);
  const table: Array<[what: string, text: string, statuses: number[]]> = [
    ['one, then another protocol', `${create}EHLO example.com\r\n\r\n`, [201, 400]],
    [
      'two, then a header of 17 KiB',
      `${list}${list}GET / HTTP/1.1\r\nA: ${'x'.repeat(17_408)}\r\n\r\n`,
      [200, 200, 431],
    ],
    ['one, then two lengths', `${list}GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n`, [200, 400]],
    ['two, then a head that does not arrive', `${list}${list}GET / HTTP/1.1\r\nA: `, [200, 200, 408]],
    ['one, then a body that does not arrive', list + create.replace('{}', '{'), [200, 408]],
    [
      'one, then an invalid chunk',
      `${list}${requestText('POST', '/v1/keys', { ...admin, headers: { 'content-type': 'application/json', 'transfer-encoding': 'chunked' } })}nonsense\r\n`,
      [200, 400],
    ],
  ];
  for (const [what, text, statuses] of table) {
    const client = await openRaw(t, port);
    client.write(text);
    const reply = await client.readAll();
    t.same(statusesIn(reply), statuses, what);
    t.match(lastReply(reply), 'connection: close', what);
  }
  t.equal((await admin.get('/v1/keys')).body.data.length, 1, 'only the complete request was done');
});

t.test('pipelined requests are answered in order', async (t) => {
  const { app, admin } = await startService(t);
  const client = await openRaw(t, await listen(app));
  const paths = Array.from({ length: 40 }, (_, index) => (index % 2 === 0 ? '/livez' : `/nothing-${index}`));
  const last = requestText('GET', '/v1/keys', { ...admin, headers: { connection: 'close' } });
  client.write(paths.map((path) => requestText('GET', path)).join('') + last);
  const reply = await client.readAll();
  t.same(statusesIn(reply), [...paths.map((path) => (path === '/livez' ? 200 : 404)), 200]);
  const named = [...reply.matchAll(/There is no endpoint at (\/nothing-\d+)/g)].map(([, path]) => path);
  t.same(
    named,
    paths.filter((path) => path !== '/livez'),
  );
});

t.test('a client that pipelines too many requests gets the allowed replies and a closed connection', async (t) => {
  const { app } = await startService(t);
  const client = await openRaw(t, await listen(app));
  client.write(requestText('GET', '/livez').repeat(1_500));
  const reply = await client.readAll();
  const statuses = statusesIn(reply);
  t.same(new Set(statuses), new Set([200]));
  t.equal(statuses.length, 65, 'one in progress and 64 that wait');
  t.match(lastReply(reply), 'connection: close');
});

for (const path of ['/openapi.json', '/docs/json', '/docs/yaml', '/metrics', '/docs/static/swagger-ui-bundle.js']) {
  t.test(`${path}: unread replies are not produced, are ended after a time, and disturb no other client`, async (t) => {
    const { app, admin, verifier, logLines } = await startService(t, { writeTimeoutMs: 300, publicLimit: 1e6 });
    const port = await listen(app);
    const { body: key } = await admin.post('/v1/keys', {});
    const connections = 10;
    const pipelinedRequests = requestText('GET', path).repeat(1_500);
    for (let opened = 0; opened < connections; opened++) {
      const client = await openRaw(t, port);
      client.socket.pause();
      client.write(pipelinedRequests);
    }
    for (let round = 0; round < 20; round++) {
      const startedAtMs = performance.now();
      const { body } = await verifier.post('/v1/verify', { key: key.key, permission: 'read' });
      t.equal(body.code, 'valid');
      t.ok(performance.now() - startedAtMs < 2_000);
    }
    await eventually(async () => (await openConnections(app.server)) === 0);
    const served = logLines.filter((line) => line.includes(`"path":"${path}"`)).length;
    t.ok(served <= connections * 65, `${served} of 15,000 were served`);
  });
}

t.test('connections beyond the limit are closed, and the others are served', async (t) => {
  const { app, logLines } = await startService(t, { maxConnections: 5 });
  const port = await listen(app);
  const first = await openRaw(t, port);
  for (let opened = 0; opened < 4; opened++) await openRaw(t, port);
  for (let beyond = 0; beyond < 5; beyond++) t.equal(await (await openRaw(t, port)).readAll(), '');
  first.write(requestText('GET', '/livez', { headers: { connection: 'close' } }));
  t.same(statusesIn(await first.readAll()), [200]);
  t.equal(logLines.filter((line) => line.includes('New connections are closed')).length, 1, 'one line, not five');
});

t.test('public routes are limited by address, each route separately; health probes are not', async (t) => {
  const { app } = await startService(t, { publicLimit: 3 });
  const statuses = async (url: string, remoteAddress: string) => {
    const replies = [];
    for (let round = 0; round < 5; round++) replies.push((await app.inject({ url, remoteAddress })).statusCode);
    return replies;
  };
  for (const url of ['/openapi.json', '/metrics', '/problems/not_found']) {
    t.same(await statuses(url, '192.0.2.1'), [200, 200, 200, 429, 429], url);
    t.same(await statuses(url, '192.0.2.2'), [200, 200, 200, 429, 429], 'another address');
  }
  t.same(await statuses('/readyz', '192.0.2.1'), [200, 200, 200, 200, 200]);
  t.same(await statuses('/livez', '192.0.2.1'), [200, 200, 200, 200, 200]);
  const reply = await app.inject({ url: '/docs/static/swagger-ui.css', remoteAddress: '2001:db8::1' });
  t.equal(reply.statusCode, 200);
  for (const last of ['2', '3', '4']) {
    const { statusCode, headers } = await app.inject({
      url: '/docs/static/swagger-ui.css',
      remoteAddress: `2001:db8::${last}`,
    });
    t.equal(statusCode, last === '4' ? 429 : 200, 'a /64 network is one address');
    if (statusCode === 429) t.match(headers, { 'retry-after': /^\d+$/, 'ratelimit-policy': '"public";q=3;w=60' });
  }
});

t.test('the load of the start itself does not reject the first requests', async (t) => {
  const { app, admin } = await startService(t, { eventLoopDelayLimitMs: 50 });
  const busyUntilMs = performance.now() + 1_500;
  const timer = setInterval(() => {
    for (const until = performance.now() + 300; performance.now() < until; );
    if (performance.now() > busyUntilMs) clearInterval(timer);
  }, 1);
  await eventually(async () => performance.now() > busyUntilMs);
  clearInterval(timer);
  await listen(app);
  t.equal((await app.inject('/readyz')).statusCode, 200);
  t.equal((await admin.get('/v1/keys')).status, 200);
});

function lastReply(text: string): string {
  return text.slice(Array.from(text.matchAll(/HTTP\/1\.1 \d{3} /g)).at(-1)?.index).toLowerCase();
}

function openConnections(server: { getConnections(callback: (error: Error | null, count: number) => void): unknown }) {
  return new Promise<number>((resolve, reject) => {
    server.getConnections((error, count) => (error === null ? resolve(count) : reject(error)));
  });
}
