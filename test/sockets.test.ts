import { once } from 'node:events';
import { type AddressInfo, connect } from 'node:net';
import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

/** Writes bytes to the service's port and reads until it closes the connection. */
async function exchange(port: number, parts: Array<string | Buffer>, { hold = false } = {}): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  const received: Buffer[] = [];
  socket.on('data', (chunk) => received.push(chunk));
  socket.on('error', () => undefined);
  await once(socket, 'connect');
  for (const part of parts) socket.write(part);
  if (!hold) socket.end();
  await once(socket, 'close');
  return Buffer.concat(received).toString();
}

t.test('data that is not HTTP gets a problem and a closed connection', async (t) => {
  const { app } = await startService(t);
  await app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = app.server.address() as AddressInfo;
  const table: Array<[what: string, bytes: string, status: number, code: string]> = [
    ['another protocol', 'EHLO example.com\r\n\r\n', 400, 'bad_request'],
    ['no Host', 'GET /livez HTTP/1.1\r\n\r\n', 400, 'bad_request'],
    [
      'two lengths',
      'POST /v1/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x',
      400,
      'bad_request',
    ],
    [
      'a length and chunks',
      'POST /v1/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
      400,
      'bad_request',
    ],
    [
      'a header of 17 KiB',
      `GET /livez HTTP/1.1\r\nHost: x\r\nA: ${'x'.repeat(17_408)}\r\n\r\n`,
      431,
      'headers_too_large',
    ],
    ['a space before a colon', 'GET /livez HTTP/1.1\r\nHost : x\r\n\r\n', 400, 'bad_request'],
  ];
  for (const [what, bytes, status, code] of table) {
    const reply = await exchange(port, [bytes], { hold: true });
    t.match(reply, new RegExp(`^HTTP/1\\.1 ${status} `), what);
    t.match(reply.toLowerCase(), 'connection: close', what);
    const [head = '', body = ''] = reply.split('\r\n\r\n');
    t.match(head, /content-type: application\/problem\+json/i, what);
    t.equal(JSON.parse(body).code, code, what);
  }
  t.match(await exchange(port, ['GET /livez HTTP/1.0\r\n\r\n']), /^HTTP\/1\.1 200/, 'HTTP/1.0 needs no Host');
});

t.test('headers and bodies that do not arrive in time are cut off', async (t) => {
  const { app, admin } = await startService(t, { receiveTimeoutMs: 400 });
  await app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = app.server.address() as AddressInfo;
  for (const [what, bytes] of [
    ['headers', 'GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: '],
    [
      'a body',
      `POST /v1/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${admin.token}\r\n` +
        'Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{',
    ],
  ] as const) {
    const reply = await exchange(port, [bytes], { hold: true });
    t.match(reply, /^HTTP\/1\.1 408 /, what);
    t.match(reply, '"code":"request_timeout"', what);
  }
  t.same((await admin.get('/v1/keys')).body.data, []);
});

t.test('500 slow connections do not disturb another client', async (t) => {
  const { app, verifier, admin } = await startService(t, { receiveTimeoutMs: 2_000 });
  await app.listen({ port: 0, host: '127.0.0.1' });
  const { port } = app.server.address() as AddressInfo;
  const { body: key } = await admin.post('/v1/keys', {});
  const slow = Array.from({ length: 500 }, () =>
    exchange(port, ['POST /v1/verify HTTP/1.1\r\nHost: x\r\n'], { hold: true }),
  );
  for (let round = 0; round < 20; round++) {
    const response = await fetch(`http://127.0.0.1:${port}/v1/verify`, {
      method: 'POST',
      headers: { authorization: `Bearer ${verifier.token}`, 'content-type': 'application/json' },
      body: JSON.stringify({ key: key.key, permission: 'read' }),
    });
    t.equal(((await response.json()) as { code: string }).code, 'valid');
  }
  const replies = await Promise.all(slow);
  t.equal(
    replies.filter((reply) => reply.startsWith('HTTP/1.1 408 ')).length,
    500,
    'each slow connection gets a reply',
  );
});
