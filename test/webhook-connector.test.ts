import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { Worker } from 'node:worker_threads';
import { gzipSync } from 'node:zlib';
import type { Test } from 'tap';
import { DeliveryFailed } from '../src/webhooks/delivery-failed.ts';
import { createDnsLookup } from '../src/webhooks/name-lookup.ts';
import { exchange, retryAfterSecondsOf } from '../src/webhooks/reply.ts';
import { type HttpListener, type Listener, listenHttp, listenRaw } from './support/listeners.ts';
import { startNameServer } from './support/name-server.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';
import { failureOf, startWebhookClient } from './support/webhook-client.ts';

// One exchange with an endpoint. It ends in time and with bounded memory, and each failure has a reason.

const opened = ['127.0.0.0/8'];
const urlOf = ({ port }: Listener) => `http://127.0.0.1:${port}/hook?from=latchkey`;
const untilNoneOpen = (listener: Listener) => eventually(async () => listener.open() === 0);

t.test('a delivery arrives unchanged, byte by byte', async (t) => {
  const receiver = await listenHttp(t, (response) => response.writeHead(202, { 'x-more': 'y' }).end('taken'));
  const { post } = startWebhookClient(t, { opened });
  const body = '{"name":"Zoë \u{1f511}","same":"as given"}';
  const reply = await post(urlOf(receiver), { 'webhook-id': 'msg_1', 'webhook-timestamp': '1' }, body);
  t.match(reply, { status: 202, retryAfterSeconds: null, body: 'taken' });
  t.ok(reply.durationMs >= 0 && reply.durationMs < 10_000);
  const [arrived] = receiver.arrived;
  t.match(arrived, { method: 'POST', url: '/hook?from=latchkey', body: Buffer.from(body) });
  t.match(arrived?.headers, {
    host: `127.0.0.1:${receiver.port}`,
    'webhook-id': 'msg_1',
    'webhook-timestamp': '1',
    'content-type': 'application/json',
    'content-length': String(Buffer.byteLength(body)),
    'user-agent': 'Latchkey-Webhooks',
    connection: 'close',
  });
  t.equal(arrived?.headers['accept-encoding'], undefined);
});

t.test('each delivery uses a new connection, so that the address is checked again', async (t) => {
  const receiver = await listenHttp(t, (response) => {
    response.writeHead(200, { connection: 'keep-alive', 'keep-alive': 'timeout=600' }).end();
  });
  const { post } = startWebhookClient(t, { opened });
  for (const _ of [1, 2, 3]) await post(urlOf(receiver), {}, '{}');
  t.equal(receiver.connections(), 3);
  await untilNoneOpen(receiver);
});

t.test('a request that cannot be written leaves no open connection', async (t) => {
  const receiver = await listenHttp(t);
  const { post } = startWebhookClient(t, { opened });
  t.ok((await failureOf(post(urlOf(receiver), { 'webhook-id': 'msg_1\r\nx: y' }, '{}'))) instanceof Error);
  await untilNoneOpen(receiver);
  t.same(receiver.arrived, []);
});

t.test('the time limit covers every step of the exchange', async (t) => {
  const timeoutMs = 400;
  const silent = await listenRaw(t, (socket) => socket.resume());
  const drip = (socket: Socket, head: string, part: string) => {
    socket.resume();
    socket.write(head);
    const timer = setInterval(() => socket.write(part), 20);
    socket.on('close', () => clearInterval(timer));
  };
  const drippingHead = await listenRaw(t, (socket) => drip(socket, 'HTTP/1.1 200 OK\r\n', 'x: y\r\n'));
  const drippingEarlyHints = await listenRaw(t, (socket) => drip(socket, '', 'HTTP/1.1 103 Early Hints\r\n\r\n'));
  const drippingBody = await listenRaw(t, (socket) => drip(socket, 'HTTP/1.1 200 OK\r\n\r\n', '.'));
  const unread = await listenRaw(t, (socket) => {
    // The receiver notices the closed connection only when it reads.
    setTimeout(() => socket.resume(), 3 * timeoutMs);
    socket.pause();
  });
  const cases: Array<[what: string, listener: Listener, body: string]> = [
    ['no reply', silent, '{}'],
    ['a head without an end', drippingHead, '{}'],
    ['interim replies without an end', drippingEarlyHints, '{}'],
    ['a body without an end', drippingBody, '{}'],
    ['a request that is not read', unread, 'x'.repeat(20_000_000)],
  ];
  for (const [what, listener, body] of cases) {
    const { post } = startWebhookClient(t, { opened, timeoutMs });
    const failure = await failureOf(post(urlOf(listener), {}, body));
    t.match(failure, { reason: 'timed_out' }, what);
    t.ok(failure instanceof DeliveryFailed && failure.durationMs >= timeoutMs - 5 && failure.durationMs < 5_000, what);
    await untilNoneOpen(listener);
  }

  await t.test('a stalled TLS handshake is ended', async (t) => {
    const { post } = startWebhookClient(t, { opened, timeoutMs });
    t.match(await failureOf(post(`https://127.0.0.1:${silent.port}/`, {}, '{}')), { reason: 'timed_out' });
    await untilNoneOpen(silent);
  });

  await t.test('a lookup without an answer is ended', async (t) => {
    let signalled = false;
    const lookup = (_name: string, signal: AbortSignal) => {
      signal.addEventListener('abort', () => {
        signalled = true;
      });
      return new Promise<string[]>(() => undefined);
    };
    const { post, checkUrl } = startWebhookClient(t, { opened, timeoutMs, lookup });
    t.match(await failureOf(post('http://hook.example.com/', {}, '{}')), { reason: 'timed_out' });
    t.ok(signalled, 'the lookup was aborted');
    await t.rejects(checkUrl('http://hook.example.com/'), { code: 'validation_failed' });
  });

  await t.test('a connection that is never accepted is ended', async (t) => {
    const { port, waiting } = await startBlackHole(t, { host: '127.0.0.1', port: 0 });
    const { post } = startWebhookClient(t, { opened, timeoutMs });
    t.match(await failureOf(post(`http://127.0.0.1:${port}/`, {}, '{}')), { reason: 'timed_out' });
    t.ok(waiting.at(-1)?.connecting, 'no connection is accepted there');
  });
});

/** A port that neither accepts nor rejects connections: the queue of a blocked process is full. */
async function startBlackHole(t: Test, place: { host: string; port: number }) {
  const code = `
    const { createServer } = require('node:net');
    const { parentPort, workerData } = require('node:worker_threads');
    const server = createServer().listen({ ...workerData, backlog: 1 }, () => {
      parentPort.postMessage(server.address().port);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
    });`;
  const worker = new Worker(code, { eval: true, workerData: place });
  t.teardown(() => worker.terminate());
  const [port] = (await once(worker, 'message')) as [number];
  const waiting = Array.from({ length: 8 }, () => connect(port, place.host).on('error', () => undefined));
  t.teardown(() => {
    for (const socket of waiting) socket.destroy();
  });
  await eventually(async () => waiting.some((socket) => !socket.connecting));
  return { port, waiting };
}

t.test('only the beginning of a reply is read, as storable text', async (t) => {
  const replies: Array<[what: string, body: Buffer, text: string]> = [
    ['nothing', Buffer.alloc(0), ''],
    ['all of a short one', Buffer.from('Zoë'), 'Zoë'],
    ['as much as is allowed', Buffer.alloc(16_384, 'a'), 'a'.repeat(16_384)],
    ['a byte more', Buffer.alloc(16_385, 'a'), 'a'.repeat(16_384)],
    ['U+0000', Buffer.from('a\u0000b'), 'a\ufffdb'],
    ['what is not UTF-8', Buffer.from([0x61, 0xff, 0xc3]), 'a\ufffd\ufffd'],
    ['a surrogate', Buffer.from([0xed, 0xa0, 0x80]), '\ufffd\ufffd\ufffd'],
  ];
  const { post } = startWebhookClient(t, { opened });
  for (const [what, body, text] of replies) {
    const receiver = await listenHttp(t, (response) => response.end(body));
    t.equal((await post(urlOf(receiver), {}, '{}')).body, text, what);
    await untilNoneOpen(receiver);
  }

  await t.test('a body without an end is cut off', async (t) => {
    let sent = 0;
    const receiver = await listenHttp(t, (response) => {
      const more = () => {
        while (!response.destroyed) {
          sent += 65_536;
          if (!response.write(Buffer.alloc(65_536, 'a'))) break;
        }
      };
      response.on('drain', more);
      more();
    });
    const reply = await post(urlOf(receiver), {}, '{}');
    t.match(reply, { status: 200 });
    t.equal(reply.body.length, 16_384);
    await untilNoneOpen(receiver);
    t.ok(sent < 64 * 1024 * 1024, `${sent} bytes were sent`);
  });

  await t.test('a compressed reply is not inflated', async (t) => {
    const receiver = await listenHttp(t, (response) => {
      response.writeHead(200, { 'content-encoding': 'gzip' }).end(gzipSync(Buffer.alloc(10_000_000)));
    });
    const reply = await post(urlOf(receiver), {}, '{}');
    t.equal(reply.body.slice(0, 2), '\u001f\ufffd', 'unchanged');
    t.equal(reply.body.includes('\u0000'), false);
  });
});

t.test('an invalid HTTP reply is reported as reply_broken', async (t) => {
  const big = 'x'.repeat(20_000);
  const replies = {
    'the end at once': '',
    'something else': 'SSH-2.0-OpenSSH_9.6\r\n',
    'half a head': 'HTTP/1.1 200 OK\r\nContent-Le',
    'half a body': 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf',
    'half a chunk': 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf',
    'a wrong chunk': 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n',
    'two lengths': 'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na',
    'a header too long': `HTTP/1.1 200 OK\r\nX: ${big}\r\n\r\n`,
    'headers too many': `HTTP/1.1 200 OK\r\n${'X: yyyyyyyyyyyy\r\n'.repeat(2_000)}\r\n`,
    'another protocol': 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n',
    'HTTP/2': 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
  };
  const { post } = startWebhookClient(t, { opened });
  for (const [what, reply] of Object.entries(replies)) {
    const listener = await listenRaw(t, (socket) => socket.once('data', () => socket.end(reply)));
    t.match(await failureOf(post(urlOf(listener), {}, '{}')), { reason: 'reply_broken' }, what);
    t.equal(listener.connections(), 1, 'not retried by the client');
    await untilNoneOpen(listener);
  }
  const ended = connect((await listenHttp(t)).port, '127.0.0.1');
  await once(ended, 'connect');
  ended.destroy();
  const options = { url: new URL('http://127.0.0.1/'), headers: {}, body: '', replyLimitBytes: 1 };
  const neverAborted = new AbortController().signal;
  t.ok(
    (await failureOf(exchange(ended, { ...options, signal: neverAborted }))) instanceof Error,
    'a connection that has ended',
  );
  const resetting = await listenRaw(t, (socket) => socket.resetAndDestroy());
  t.match(await failureOf(post(urlOf(resetting), {}, '{}')), { reason: /^(reply_broken|connect_failed)$/ }, 'a reset');
});

t.test('if one address of a name rejects the connection, the next address is tried', async (t) => {
  const receiver = await listenHttp(t);
  const closed = await listenRaw(t, (socket) => socket.destroy());
  const { post } = startWebhookClient(t, { opened, lookup: async () => ['127.0.0.2', '127.0.0.1', '127.0.0.3'] });
  t.match(await post(`http://hook.example.com:${receiver.port}/`, {}, '{}'), { status: 204 });
  const { post: postToClosed } = startWebhookClient(t, { opened, lookup: async () => ['127.0.0.2', '127.0.0.3'] });
  const failure = await failureOf(postToClosed(`http://hook.example.com:${closed.port}/`, {}, '{}'));
  t.match(failure, { reason: 'connect_failed', message: 'The connection could not be established.' });
  t.equal(closed.connections(), 0);

  await t.test('the next address is also tried if the first one does not answer', async (t) => {
    await startBlackHole(t, { host: '127.0.0.2', port: receiver.port });
    const before = performance.now();
    t.match(await post(`http://hook.example.com:${receiver.port}/`, {}, '{}'), { status: 204 });
    t.ok(performance.now() - before > 1_000, 'the first address was tried');
  });
});

t.test('registering a name whose lookup gets no answer takes at most 5 seconds', async (t) => {
  const { checkUrl } = startWebhookClient(t, { timeoutMs: 15_000, lookup: () => new Promise(() => undefined) });
  const before = performance.now();
  await t.rejects(checkUrl('https://hook.example.com/'), { code: 'validation_failed' });
  t.ok(performance.now() - before < 10_000);
});

t.test('Retry-After is read in both of its forms', async (t) => {
  const now = new Date('2030-01-02T03:04:05.500Z');
  const read = (value: string | string[] | undefined) =>
    retryAfterSecondsOf(value === undefined ? {} : { 'retry-after': value as string }, now);
  t.equal(read(undefined), null);
  t.equal(read('0'), 0);
  t.equal(read(' 120 '), 120);
  t.equal(read(['7', '9']), 7);
  t.equal(read('Wed, 02 Jan 2030 03:04:10 GMT'), 5);
  t.equal(read('Wed, 02 Jan 2030 03:04:05 GMT'), 0);
  t.equal(read('Wed, 21 Oct 2015 07:28:00 GMT'), 0);
  for (const junk of [
    '',
    '-1',
    '1.5',
    '1e3',
    '0x10',
    'soon',
    '99999999999',
    '2030-01-02',
    'Wed, 99 Foo 2030 03:04:10 GMT',
  ]) {
    t.equal(read(junk), null, junk);
  }
  const receiver = await listenHttp(t, (response) => response.writeHead(503, { 'retry-after': '120' }).end());
  const { post } = startWebhookClient(t, { opened });
  t.match(await post(urlOf(receiver), {}, '{}'), { status: 503, retryAfterSeconds: 120 });
});

t.test('proxies named in the environment are ignored', async (t) => {
  const [receiver, proxy] = [await listenHttp(t), await listenHttp(t)];
  const names = ['HTTP_PROXY', 'http_proxy', 'HTTPS_PROXY', 'https_proxy', 'ALL_PROXY', 'NODE_USE_ENV_PROXY'];
  const before = names.map((name) => [name, process.env[name]] as const);
  t.teardown(() => {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  });
  for (const name of names) process.env[name] = name.startsWith('NODE') ? '1' : `http://127.0.0.1:${proxy.port}`;
  const { post } = startWebhookClient(t, { opened });
  t.match(await post(urlOf(receiver), {}, '{}'), { status: 204 });
  t.equal(proxy.connections(), 0);
});

t.test('closing the client ends calls in progress, without blaming the endpoint', async (t) => {
  const silent = await listenRaw(t, (socket) => socket.resume());
  const client = startWebhookClient(t, { opened });
  const underWay = failureOf(client.post(urlOf(silent), {}, '{}'));
  await eventually(async () => silent.open() === 1);
  await client.close();
  for (const failure of [await underWay, await failureOf(client.post(urlOf(silent), {}, '{}'))]) {
    t.ok(failure instanceof Error && !(failure instanceof DeliveryFailed), String(failure));
  }
  await untilNoneOpen(silent);
  t.equal(silent.connections(), 1);
});

t.test('names are looked up for IPv4 and IPv6', async (t) => {
  const receiver: HttpListener = await listenHttp(t);
  const { server, queries } = await startNameServer(t, {
    'hook.example.com': { A: ['127.0.0.1'] },
    'both.example.com': { A: ['127.0.0.1'], AAAA: ['fd00:0:0:0:0:0:0:1'] },
    'none.example.com': {},
    'silent.example.com': 'silence',
  });
  const { post } = startWebhookClient(t, { opened, timeoutMs: 1_000, lookup: createDnsLookup([server]) });
  const to = (name: string) => post(`http://${name}.example.com:${receiver.port}/`, {}, '{}');
  t.match(await to('hook'), { status: 204 });
  t.same(queries.sort(), ['hook.example.com A', 'hook.example.com AAAA']);
  t.match(await failureOf(to('both')), { reason: 'address_refused' }, 'one address of each family, and one is private');
  t.match(await failureOf(to('none')), { reason: 'dns_failed' });
  t.match(await failureOf(to('unknown')), { reason: 'dns_failed' });
  t.match(await failureOf(to('silent')), { reason: 'timed_out' });
  const { post: postWithoutAddress } = startWebhookClient(t, { opened, lookup: async () => [] });
  t.match(await failureOf(postWithoutAddress('http://hook.example.com/', {}, '{}')), { reason: 'dns_failed' });
  t.equal(receiver.connections(), 1);
});
