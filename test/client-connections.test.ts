import type { Socket } from 'node:net';
import t, { type Test } from 'tap';
import { followChanges } from '../src/client/change-stream.ts';
import { createConnections } from '../src/client/connections.ts';
import { CallFailed, type Entry, verifyBatch } from '../src/client/service-call.ts';
import { listenHttp, listenRaw } from './support/listeners.ts';
import { freePort } from './support/ports.ts';
import { eventually } from './support/process.ts';

// What the client makes of whatever answers at Latchkey's address, or does not: byte by byte, on real sockets.

const entry: Entry = { key: 'x', permission: 'read', cost: 1 };
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

function open(t: Test, url: string, timeoutMs = 2_000) {
  const connections = createConnections({ url, token: 'x', timeoutMs });
  t.teardown(() => connections.close());
  const ask = async (): Promise<string> => {
    try {
      const [answer] = await verifyBatch(connections, [entry], false);
      return JSON.stringify(answer);
    } catch (error) {
      return error instanceof CallFailed ? error.why : String(error);
    }
  };
  return { ...connections, ask };
}

const answered = '{"valid":true,"name":"ü€😀"}';

/** Byte by byte, each in a packet of its own as far as that can be said. */
async function drip(socket: Socket, text: string | Buffer, wrap = (byte: Buffer) => byte): Promise<void> {
  for (const byte of Buffer.from(text)) {
    socket.write(wrap(Buffer.from([byte])));
    await new Promise((resolve) => setImmediate(resolve));
  }
}

t.test('each way in which an answer can fail to come, and how often it was asked for', async (t) => {
  const table: Array<[what: string, serve: Serve, expected: string, requests: number]> = [
    ['reset before the request', (socket, request) => request === 0 && socket.resetAndDestroy(), 'unreachable', 0],
    ['reset after it: asked once more', (socket, request) => request > 0 && socket.resetAndDestroy(), 'broken', 2],
    ['closed after it: asked once more', (socket, request) => request > 0 && socket.end(), 'broken', 2],
    // Long after it a connection that was lost before would have been noticed.
    [
      'reset much later',
      (socket, request) => request > 0 && setTimeout(() => socket.resetAndDestroy(), 400),
      'broken',
      1,
    ],
    ['half a head', (socket, request) => request > 0 && socket.end(ok.slice(0, 20)), 'broken', 2],
    // It was counted, and would be counted once more.
    ['half an answer', (socket, request) => request > 0 && socket.end(ok.slice(0, -9)), 'broken', 1],
    ['half an answer in chunks', (socket, request) => request > 0 && socket.end(`${chunked}4\r\n{"da`), 'broken', 1],
    ['half of one that ends with the connection', (socket) => socket.end(`HTTP/1.1 200 OK\r\n\r\n{"da`), 'broken', 1],
    ['no HTTP', (socket) => socket.end('220 example.com ESMTP\r\n'), 'broken', 1],
    ['no JSON', (socket, request) => request > 0 && socket.write(`${chunked}4\r\n{"da\r\n0\r\n\r\n`), 'broken', 1],
    ['null', (socket, request) => request > 0 && socket.write(`${chunked}4\r\nnull\r\n0\r\n\r\n`), 'broken', 1],
    [
      'no answers',
      (socket, request) => request > 0 && socket.write(`${chunked}b\r\n{"data":[]}\r\n0\r\n\r\n`),
      'broken',
      1,
    ],
    ['an empty one', (socket, request) => request > 0 && socket.write('HTTP/1.1 204 No\r\n\r\n'), 'unavailable', 1],
    [
      'another place',
      (socket, request) => request > 0 && socket.write('HTTP/1.1 302 No\r\nLocation: /\r\nContent-Length: 0\r\n\r\n'),
      'unavailable',
      1,
    ],
    [
      'no token of ours',
      (socket, request) => request > 0 && socket.write('HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n'),
      'refused',
      1,
    ],
    [
      'one that is preceded by hints',
      (socket, request) => request > 0 && socket.write(`HTTP/1.1 103 Hi\r\n\r\n${ok}`),
      answered,
      1,
    ],
    [
      'one in single bytes',
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
      'one with the connection’s end',
      (socket, request) => request > 0 && socket.end(`HTTP/1.0 200 OK\r\n\r\n${good}`),
      answered,
      1,
    ],
  ];
  for (const [what, serve, expected, requests] of table) {
    const listener = await listenFor(t, serve);
    const { ask, close } = open(t, listener.url);
    t.equal(await ask(), expected, what);
    t.equal(listener.requests(), requests, `${what}, asked`);
    await close();
    await eventually(async () => listener.open() === 0, 2_000);
  }
  t.equal(await open(t, `http://127.0.0.1:${await freePort()}`).ask(), 'unreachable', 'nobody there');
  t.equal(await open(t, 'http://latchkey.invalid').ask(), 'unreachable', 'no such name');
});

t.test('a kept connection is used again, and one that was lost meanwhile is made anew', async (t) => {
  const listener = await listenFor(t, (socket, request) => {
    if (request === 4) socket.resetAndDestroy();
    else if (request > 0) socket.write(ok);
  });
  const { ask } = open(t, listener.url);
  for (let turn = 0; turn < 3; turn++) t.equal(await ask(), answered);
  t.equal(listener.connections(), 1);
  t.equal(await ask(), answered, 'asked on a new one');
  t.same([listener.connections(), listener.requests()], [2, 5]);
});

t.test(
  'what is asked at once has a connection each; closing ends those, and what is on its way as it comes',
  async (t) => {
    const hold: Array<() => void> = [];
    const listener = await listenFor(t, (socket, request) => {
      if (request > 0) hold.push(() => socket.write(ok));
    });
    const { ask, close } = open(t, listener.url);
    const answers = Array.from({ length: 3 }, ask);
    await eventually(async () => hold.length === 3);
    for (const answer of hold.splice(1)) answer();
    await Promise.all(answers.slice(1));
    t.same([listener.connections(), listener.open()], [3, 3]);
    await close();
    await eventually(async () => listener.open() === 1, 2_000);
    hold[0]?.();
    t.equal(await answers[0], answered, 'who asked before is answered');
    await eventually(async () => listener.open() === 0, 2_000);
  },
);

t.test(
  'no answer within the time limit: the connection is given up, and an answer that comes later is nobody’s',
  async (t) => {
    let late: (() => void) | undefined;
    const listener = await listenFor(t, (socket, request) => {
      if (request === 1) late = () => socket.write(ok.replace('true', '"late"'));
      else if (request > 1) socket.write(ok);
    });
    const { ask } = open(t, listener.url, 300);
    const askedAtMs = performance.now();
    t.equal(await ask(), 'broken');
    const tookMs = performance.now() - askedAtMs;
    t.ok(tookMs >= 299 && tookMs < 1_500, `${tookMs} ms`);
    late?.();
    t.equal(await ask(), answered);
    await eventually(async () => listener.open() === 1, 2_000);
  },
);

t.test('the time limit of a call that was answered does not end the connection for those after it', async (t) => {
  const listener = await listenFor(t, (socket, request) => request > 0 && socket.write(ok));
  const { ask } = open(t, listener.url, 100);
  const beganAtMs = performance.now();
  await eventually(async () => (await ask()) === answered && performance.now() - beganAtMs > 300, 5_000);
  t.equal(listener.connections(), 1);
});

t.test('an answer is asked for as it is, not compressed', async (t) => {
  const listener = await listenHttp(t, (response) => response.end(good));
  t.equal(await open(t, `http://127.0.0.1:${listener.port}/below`).ask(), answered);
  t.match(listener.arrived, [{ url: '/below/v1/verify/batch', headers: { 'accept-encoding': 'identity' } }]);
});

/** A stream of changes on what `serve` does. */
async function follow(t: Test, url: string, timeoutMs = 2_000) {
  const heard: string[] = [];
  const turns: Array<[isAlive: boolean, cause: string]> = [];
  const stream = followChanges({
    service: { url, token: 'x', timeoutMs },
    forgetful: { forget: (ids) => heard.push(...ids), forgetAll: () => heard.push('all') },
    onTurn: (isAlive, cause) => turns.push([isAlive, (cause as Error | undefined)?.message ?? '']),
    onTrouble: () => undefined,
  });
  t.teardown(() => stream.close());
  return { ...stream, heard, turns };
}

const streamHead = 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n';
const beat = (openMs: number) =>
  `event: heartbeat\ndata: {"at":"2026-01-01T00:00:00Z","behindMs":0,"openMs":${openMs}}\n\n`;

t.test('a stream in single bytes, after hints: its events are whole, and so are their characters', async (t) => {
  const listener = await listenFor(t, (socket, request) => {
    if (request === 0) return;
    socket.write('HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n');
    void drip(socket, `${streamHead}${beat(0)}: ü\nevent: change\ndata: {"ids":["ü€😀"]}\n\n`);
  });
  const stream = await follow(t, listener.url);
  await eventually(async () => stream.heard.includes('ü€😀'), 5_000);
  t.same(stream.heard, ['all', 'ü€😀']);
  t.ok(stream.isAlive(performance.now()));
  t.equal(listener.connections(), 1);
  await stream.close();
  t.notOk(stream.isAlive(performance.now()));
  await eventually(async () => listener.open() === 0, 2_000);
  t.same(stream.turns, [[true, '']], 'whoever closes it is not told of it');
});

t.test('what is no stream, or none any more, is left, and another one opened', async (t) => {
  const other = ['503 No\r\nContent-Type: text/event-stream', '200 OK\r\nContent-Type: text/html'].map(
    (head) => [`HTTP/1.1 ${head}\r\n\r\n${beat(0)}`, undefined] as const,
  );
  const ended = [
    [`${streamHead}${beat(0)}event: change\ndata: {\n\n`, /JSON/],
    [`${streamHead}${beat(0)}event: end\ndata: {"reason":"so"}\n\n`, /has ended the stream: so/],
    [`${streamHead}${beat(0)}data: ${'x'.repeat(300_000)}`, /does not end/],
  ] as const;
  for (const [bytes, told] of [...other, ...ended]) {
    const listener = await listenFor(t, (socket, request, connection) => {
      if (request > 0) socket.write(connection === 1 ? bytes : `${streamHead}${beat(0)}`);
    });
    const stream = await follow(t, listener.url);
    const expected =
      told === undefined
        ? [[true, '']]
        : [
            [true, ''],
            [false, told],
            [true, ''],
          ];
    await eventually(async () => stream.turns.length === expected.length, 5_000);
    t.match(stream.turns, expected);
    t.equal(listener.connections(), 2);
    await eventually(async () => listener.open() === 1, 2_000);
    await stream.close();
  }
});

t.test('closed while the connection is still being made: nothing of it is left', async (t) => {
  // TLS that is never begun.
  const listener = await listenRaw(t, (socket) => socket.resume());
  const stream = await follow(t, `https://127.0.0.1:${listener.port}`, 600_000);
  await eventually(async () => listener.open() === 1, 2_000);
  await stream.close();
  await eventually(async () => listener.open() === 0, 2_000);
});
