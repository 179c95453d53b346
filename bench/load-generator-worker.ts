import { createConnection, type Socket } from 'node:net';
import { createHistogram } from 'node:perf_hooks';
import type { LoadJob, LoadResult, WorkerMessage } from './load-generator.ts';
import { zipfIndexes } from './zipf.ts';

// The load generator shares the machine with the server, so it must be cheap: it sends prepared bytes and parses no more
// of a response than its length.

const responseTimeoutMs = 5_000;
/** So many that the requests do not fit into the processor's cache, for one key as for many keys. */
const defaultPreparedRequests = 2 ** 16;

const keySets = new Map<string, string[]>();

process.on('message', (message: WorkerMessage) => {
  if ('keys' in message) keySets.set(message.name, message.keys);
  else void run(message.job).then((result) => process.send?.(result));
});
process.on('disconnect', () => process.exit(0));

function keysInOrder({ keySet, order, from = 0, to, preparedRequests = defaultPreparedRequests }: LoadJob): string[] {
  const keys = keySets.get(keySet)?.slice(from, to) ?? [];
  if (order === 'zipf') return Array.from(zipfIndexes(keys.length, preparedRequests), (index) => keys[index] ?? '');
  if (order === 'once' || keys.length === 0) return keys;
  return Array.from({ length: Math.ceil(preparedRequests / keys.length) }, () => keys).flat();
}

/**
 * Prepares all requests in one buffer, in sending order, so that many keys cost the client no more than one key.
 * @returns a function that returns the next request, or undefined when the order `once` has ended
 */
function prepareRequests(job: LoadJob): () => Buffer | undefined {
  const texts = keysInOrder(job).map((key) => job.template.beforeKey + key + job.template.afterKey);
  const length = texts[0]?.length ?? 0;
  const requests = Buffer.from(texts.join(''), 'latin1');
  let next = 0;
  return () => {
    if (next === requests.length) {
      if (job.order === 'once') return undefined;
      next = 0;
    }
    next += length;
    return requests.subarray(next - length, next);
  };
}

async function run(job: LoadJob): Promise<LoadResult> {
  const nextRequest = prepareRequests(job);
  const micros = createHistogram({ lowest: 1, highest: 60_000_000, figures: 3 });
  const expectedStart = `HTTP/1.1 ${job.template.expectedStatus} `;
  const endsAtMs = performance.now() + job.seconds * 1000;
  const throttle = createThrottle(job.requestsPerSecond);
  let [responses, unexpected] = [0, 0];

  function sendRequests(socket: Socket, done: () => void): void {
    let sentAtMs = 0;
    let received = '';
    const send = () => {
      const request = performance.now() < endsAtMs ? nextRequest() : undefined;
      if (request === undefined) {
        socket.destroy();
        done();
        return;
      }
      sentAtMs = performance.now();
      socket.write(request);
    };
    socket.setEncoding('latin1');
    socket.on('data', (chunk: string) => {
      const text = received === '' ? chunk : received + chunk;
      received = '';
      if (!isComplete(text)) {
        received = text;
        return;
      }
      micros.record(Math.max(1, Math.round((performance.now() - sentAtMs) * 1000)));
      responses += 1;
      if (!text.startsWith(expectedStart) || !text.includes(job.template.expectedText)) unexpected += 1;
      throttle.schedule(send);
    });
    throttle.schedule(send);
  }

  const allowSleep = job.requestsPerSecond === undefined ? preventSleep() : () => undefined;
  const startedAtMs = performance.now();
  await Promise.all(
    Array.from({ length: job.connections }, () => {
      const socket = createConnection({ port: job.port, host: '127.0.0.1', noDelay: true });
      return new Promise<void>((resolve, reject) => {
        socket.on('error', reject);
        socket.setTimeout(responseTimeoutMs, () => reject(new Error('a response did not arrive in time')));
        socket.on('connect', () => sendRequests(socket, resolve));
      });
    }),
  );
  const seconds = (performance.now() - startedAtMs) / 1000;
  throttle.stop();
  allowSleep();
  const at = (percentile: number) => (responses === 0 ? 0 : micros.percentile(percentile) / 1000);
  return { responses, unexpected, seconds, p50Ms: at(50), p99Ms: at(99) };
}

/** Keeps the event loop busy: the server's send call would pay for waking a sleeping client (docs/performance.md). */
function preventSleep(): () => void {
  let isActive = true;
  const poll = () => {
    if (isActive) setImmediate(poll);
  };
  poll();
  return () => {
    isActive = false;
  };
}

function isComplete(text: string): boolean {
  const headEnd = text.indexOf('\r\n\r\n');
  if (headEnd < 0) return false;
  const length = /\r\ncontent-length: (\d+)/i.exec(text)?.[1];
  return text.length >= headEnd + 4 + Number(length ?? 0);
}

/** Limits the rate of requests; without a rate each request is sent at once. */
function createThrottle(requestsPerSecond: number | undefined) {
  if (requestsPerSecond === undefined) return { schedule: (send: () => void) => send(), stop: () => undefined };
  const queue: Array<() => void> = [];
  const startedAtMs = performance.now();
  let released = 0;
  const timer = setInterval(() => {
    const due = ((performance.now() - startedAtMs) / 1000) * requestsPerSecond;
    for (; released < due; released++) queue.shift()?.();
  }, 2);
  return { schedule: (send: () => void) => void queue.push(send), stop: () => clearInterval(timer) };
}
