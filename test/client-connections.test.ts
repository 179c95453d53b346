import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { gzipSync } from 'node:zlib';
import type { Test } from 'tap';
import { followChanges } from '../clients/node/src/change-stream.ts';
import { type BatchEntry, CallFailed, verifyBatch } from '../clients/node/src/service.ts';
import { listenHttp, listenRaw } from './support/listeners.ts';
import { freePort } from './support/ports.ts';
import { eventually } from './support/process.ts';
import { t } from './support/tap.ts';

// How the client handles any reply, or none, at Latchkey's address. Real sockets, byte by byte.

const entry: BatchEntry = { key: 'x', permission: 'read', cost: 1 };
const good = '{"data":[{"valid":true,"name":"ü€😀"}]}';
const ok = `HTTP/1.1 200 OK\r\nContent-Length: ${Buffer.byteLength(good)}\r\n\r\n${good}`;
const chunked = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n';

type Serve = (socket: Socket, request: number, connection: number) => void;

/** Calls `serve` for each request that has arrived, counted from 1, and for each connection with request 0. */
async function listenFor(t: Test, serve: Serve) {
  let requests = 0;
  let connections = 0;
  const listener = await listenRaw(t, (socket) => {
    const connection = ++connections;
    let received = '';
    serve(socket, 0, connection);
    socket.on('data', (chunk) => {
      received += chunk.toString();
      const [head = '', body] = received.split('\r\n\r\n');
      if (body === undefined || body.length < Number(/content-length: (\d+)/.exec(head)?.[1] ?? 0)) return;
      received = '';
      serve(socket, ++requests, connection);
    });
  });
  return { ...listener, url: `http://127.0.0.1:${listener.port}`, requests: () => requests };
}

async function verify(url: string, timeoutMs = 2_000): Promise<string> {
  try {
    const [answer] = await verifyBatch({ url, token: 'x', timeoutMs }, [entry], false);
    return JSON.stringify(answer);
  } catch (error) {
    return error instanceof CallFailed ? error.why : String(error);
  }
}

const answered = '{"valid":true,"name":"ü€😀"}';

/** Sends each byte in a packet of its own, as far as the kernel allows. */
async function drip(socket: Socket, text: string | Buffer, wrap = (byte: Buffer) => byte): Promise<void> {
  for (const byte of Buffer.from(text)) {
    socket.write(wrap(Buffer.from([byte])));
    await new Promise((resolve) => setImmediate(resolve));
  }
}

t.test('each way in which a reply can fail has its error and its number of attempts', async (t) => {
  const table: Array<[what: string, serve: Serve, expected: string, requests: number]> = [
    ['reset before the request', (socket, request) => request === 0 && socket.resetAndDestroy(), 'broken', 0],
    ['reset after it: asked once more', (socket, request) => request > 0 && socket.resetAndDestroy(), 'broken', 2],
    ['closed after it: asked once more', (socket, request) => request > 0 && socket.end(), 'broken', 2],
    // By then, a connection that was lost before the request would have been noticed.
    [
      'reset much later',
      (socket, request) => request > 0 && setTimeout(() => socket.resetAndDestroy(), 1_300),
      'broken',
      1,
    ],
    ['half a head', (socket, request) => request > 0 && socket.end(ok.slice(0, 20)), 'broken', 2],
    // The use was counted. A second request would count it again.
    ['half an answer', (socket, request) => request > 0 && socket.end(ok.slice(0, -9)), 'broken', 1],
    ['half an answer in chunks', (socket, request) => request > 0 && socket.end(`${chunked}4\r\n{"da`), 'broken', 1],
    [
      'half an answer that ends with the connection',
      (socket) => socket.end(`HTTP/1.1 200 OK\r\n\r\n{"da`),
      'broken',
      1,
    ],
    ['no HTTP', (socket) => socket.end('220 example.com ESMTP\r\n'), 'broken', 1],
    ['no JSON', (socket, request) => request > 0 && socket.write(`${chunked}4\r\n{"da\r\n0\r\n\r\n`), 'broken', 1],
    ['null', (socket, request) => request > 0 && socket.write(`${chunked}4\r\nnull\r\n0\r\n\r\n`), 'broken', 1],
    [
      'no answers',
      (socket, request) => request > 0 && socket.write(`${chunked}b\r\n{"data":[]}\r\n0\r\n\r\n`),
      'broken',
      1,
    ],
    ['an empty answer', (socket, request) => request > 0 && socket.write('HTTP/1.1 204 No\r\n\r\n'), 'unavailable', 1],
    [
      'another place',
      (socket, request) => request > 0 && socket.write('HTTP/1.1 302 No\r\nLocation: /\r\nContent-Length: 0\r\n\r\n'),
      'unavailable',
      1,
    ],
    [
      'a rejected token',
      (socket, request) => request > 0 && socket.write('HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n'),
      'refused',
      1,
    ],
    [
      'an answer after early hints',
      (socket, request) => request > 0 && socket.write(`HTTP/1.1 103 Hi\r\n\r\n${ok}`),
      answered,
      1,
    ],
    [
      'an answer in single bytes',
      (socket, request) => {
        if (request === 0) return;
        socket.write(chunked);
        const wrap = (byte: Buffer) => Buffer.concat([Buffer.from('1\r\n'), byte, Buffer.from('\r\n')]);
        void drip(socket, good, wrap).then(() => socket.write('0\r\n\r\n'));
      },
      answered,
      1,
    ],
    [
      'an answer that ends with the connection',
      (socket, request) => request > 0 && socket.end(`HTTP/1.0 200 OK\r\n\r\n${good}`),
      answered,
      1,
    ],
  ];
  for (const [what, serve, expected, requests] of table) {
    const listener = await listenFor(t, serve);
    t.equal(await verify(listener.url), expected, what);
    t.equal(listener.requests(), requests, `${what}, asked`);
  }
  t.equal(await verify(`http://127.0.0.1:${await freePort()}`), 'unreachable', 'no listener');
  t.equal(await verify('http://latchkey.invalid'), 'unreachable', 'no such name');
});

t.test('a kept connection is reused, and a lost one is replaced', async (t) => {
  const listener = await listenFor(t, (socket, request) => {
    if (request === 4) socket.resetAndDestroy();
    else if (request > 0) socket.write(ok);
  });
  for (let round = 0; round < 3; round++) t.equal(await verify(listener.url), answered);
  t.equal(await verify(listener.url), answered, 'sent on a new connection');
  t.equal(listener.requests(), 5);
  for (let round = 0; round < 20; round++) t.equal(await verify(listener.url), answered);
  t.ok(listener.connections() <= 4, `${listener.connections()} connections`);
});

t.test('without a reply within the time limit the connection is closed, and a late reply is ignored', async (t) => {
  let sendLate: (() => void) | undefined;
  let wasClosed = false;
  const listener = await listenFor(t, (socket, request) => {
    if (request === 1) {
      sendLate = () => socket.write(ok.replace('true', '"late"'));
      socket.once('close', () => {
        wasClosed = true;
      });
    } else if (request > 1) socket.write(ok);
  });
  const askedAtMs = performance.now();
  t.equal(await verify(listener.url, 300), 'broken');
  const tookMs = performance.now() - askedAtMs;
  t.ok(tookMs >= 299 && tookMs < 1_500, `${tookMs} ms`);
  sendLate?.();
  t.equal(await verify(listener.url), answered);
  await eventually(async () => wasClosed, 2_000);
});

t.test('a reply that stops halfway is ended by the time limit, even after garbage collection', async (t) => {
  setFlagsFromString('--expose-gc');
  const collectGarbage = runInNewContext('gc') as () => void;
  const listener = await listenFor(t, (socket, request) => request > 0 && socket.write(ok.slice(0, -9)));
  const collecting = setInterval(collectGarbage, 20);
  const outcome = await Promise.race([verify(listener.url, 500), delay(5_000, 'no end', { ref: false })]);
  clearInterval(collecting);
  t.equal(outcome, 'broken');
});

t.test('the time limit of an answered call does not close the connection for later calls', async (t) => {
  const listener = await listenFor(t, (socket, request) => request > 0 && socket.write(ok));
  t.equal(await verify(listener.url, 300), answered);
  const beganAtMs = performance.now();
  await eventually(async () => (await verify(listener.url)) === answered && performance.now() - beganAtMs > 600, 5_000);
  t.ok(listener.connections() <= 2, `${listener.connections()} connections`);
});

t.test('the url may have a path, and the reply may be compressed', async (t) => {
  const listener = await listenHttp(t, (response) => {
    response.writeHead(200, { 'content-encoding': 'gzip' }).end(gzipSync(good));
  });
  t.equal(await verify(`http://127.0.0.1:${listener.port}/below`), answered);
  t.match(listener.arrived, [{ url: '/below/v1/verify/batch' }]);
});

/** Follows a stream of changes from a server that behaves like `serve`. */
async function follow(t: Test, url: string, timeoutMs = 2_000) {
  const received: string[] = [];
  const stateChanges: Array<[isAlive: boolean, cause: string]> = [];
  const stream = followChanges({
    service: { url, token: 'x', timeoutMs },
    onChange: (ids) => received.push(...ids),
    onReset: () => received.push('all'),
    onStateChange: (isAlive, cause) => stateChanges.push([isAlive, (cause as Error | undefined)?.message ?? '']),
    onTrouble: () => undefined,
  });
  t.teardown(() => stream.close());
  return { ...stream, received, stateChanges };
}

const streamHead = 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n';
const beat = (openMs: number) =>
  `event: heartbeat\ndata: {"at":"2026-01-01T00:00:00Z","behindMs":0,"openMs":${openMs}}\n\n`;

t.test('events and characters of a stream that arrives in single bytes after early hints are complete', async (t) => {
  let wasClosed = false;
  const listener = await listenFor(t, (socket, request) => {
    if (request === 0) return;
    socket.once('close', () => {
      wasClosed = true;
    });
    socket.write('HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n');
    void drip(socket, `${streamHead}${beat(0)}: ü\nevent: change\ndata: {"ids":["ü€😀"]}\n\n`);
  });
  const stream = await follow(t, listener.url);
  await eventually(async () => stream.received.includes('ü€😀'), 5_000);
  t.same(stream.received, ['all', 'ü€😀']);
  t.ok(stream.isAlive(performance.now()));
  t.equal(listener.connections(), 1);
  await stream.close();
  t.notOk(stream.isAlive(performance.now()));
  await eventually(async () => wasClosed, 2_000);
  t.same(stream.stateChanges, [[true, '']], 'its owner is not notified of its own close');
});

t.test('a reply that is not a stream, and a stream that ends, is replaced by a new stream', async (t) => {
  const other = ['503 No\r\nContent-Type: text/event-stream', '200 OK\r\nContent-Type: text/html'].map(
    (head) => [`HTTP/1.1 ${head}\r\n\r\n${beat(0)}`, undefined] as const,
  );
  const ended = [
    [`${streamHead}${beat(0)}event: change\ndata: {\n\n`, /JSON/],
    [`${streamHead}${beat(0)}event: end\ndata: {"reason":"so"}\n\n`, /ended the stream: so/],
    [`${streamHead}${beat(0)}data: ${'x'.repeat(300_000)}`, /too large|buffer/i],
  ] as const;
  for (const [bytes, reason] of [...other, ...ended]) {
    const listener = await listenFor(t, (socket, request, connection) => {
      if (request > 0) socket.write(connection === 1 ? bytes : `${streamHead}${beat(0)}`);
    });
    const stream = await follow(t, listener.url);
    const expected =
      reason === undefined
        ? [[true, '']]
        : [
            [true, ''],
            [false, reason],
            [true, ''],
          ];
    await eventually(async () => stream.stateChanges.length === expected.length, 5_000);
    t.match(stream.stateChanges, expected);
    // fetch of Node 24 may open a spare connection.
    t.ok([2, 3].includes(listener.connections()), `${listener.connections()} connections`);
    await eventually(async () => listener.open() === 1, 2_000);
    await stream.close();
  }
});

t.test('a stream closed while it connects ends at once', async (t) => {
  // The server never begins the TLS handshake.
  const listener = await listenRaw(t, (socket) => socket.resume());
  const stream = await follow(t, `https://127.0.0.1:${listener.port}`, 600_000);
  await eventually(async () => listener.open() === 1, 2_000);
  const closedAtMs = performance.now();
  await stream.close();
  t.ok(performance.now() - closedAtMs < 1_000);
});
