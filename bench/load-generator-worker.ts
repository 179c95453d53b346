import { createConnection, type Socket } from 'node:net';
import { createHistogram } from 'node:perf_hooks';
import type { LoadJob, LoadResult, WorkerMessage } from './load-generator.ts';
import { zipfPicks } from './zipf.ts';

// The process that asks. It writes ready-made bytes and looks for the end of each answer: a client that costs as much
// as the server would hide what the server costs.

const silenceAllowedMs = 5_000;

const keySets = new Map<string, string[]>();

process.on('message', (message: WorkerMessage) => {
  if ('keys' in message) keySets.set(message.name, message.keys);
  else void run(message.job).then((result) => process.send?.(result));
});
process.on('disconnect', () => process.exit(0));

/**
 * As many as a short turn asks for, of one key or of many: they are gone through again where it asks for more. With
 * fewer this process would have what it sends in the processor's cache, and would be faster for that.
 */
const requestsInRow = 2 ** 16;

/** The keys that are asked for, in that order. */
function keysInOrder({ keySet, order, from = 0, to, inRow = requestsInRow }: LoadJob): string[] {
  const keys = keySets.get(keySet)?.slice(from, to) ?? [];
  if (order === 'zipf') return Array.from(zipfPicks(keys.length, inRow), (place) => keys[place] ?? '');
  if (order === 'once' || keys.length === 0) return keys;
  return Array.from({ length: Math.ceil(inRow / keys.length) }, () => keys).flat();
}

/**
 * What is written comes next; undefined when all has been written. All requests lie side by side in the order in which
 * they go out: to gather each from all over memory would cost this process more the more keys there are.
 */
function requestsOf(job: LoadJob): () => Buffer | undefined {
  const texts = keysInOrder(job).map((key) => job.question.before + key + job.question.after);
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
  const nextRequest = requestsOf(job);
  const micros = createHistogram({ lowest: 1, highest: 60_000_000, figures: 3 });
  const expectedStart = `HTTP/1.1 ${job.question.status} `;
  const endsAtMs = performance.now() + job.seconds * 1000;
  const pace = createPace(job.requestsASecond);
  let [answers, wrong] = [0, 0];

  function converse(socket: Socket, done: () => void): void {
    let sentAtMs = 0;
    let kept = '';
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
      const text = kept === '' ? chunk : kept + chunk;
      kept = '';
      if (!isWhole(text)) {
        kept = text;
        return;
      }
      micros.record(Math.max(1, Math.round((performance.now() - sentAtMs) * 1000)));
      answers += 1;
      if (!text.startsWith(expectedStart) || !text.includes(job.question.text)) wrong += 1;
      pace.permit(send);
    });
    pace.permit(send);
  }

  const rest = job.requestsASecond === undefined ? stayAwake() : () => undefined;
  const startedAtMs = performance.now();
  await Promise.all(
    Array.from({ length: job.connections }, () => {
      const socket = createConnection({ port: job.port, host: '127.0.0.1', noDelay: true });
      return new Promise<void>((resolve, reject) => {
        socket.on('error', reject);
        socket.setTimeout(silenceAllowedMs, () => reject(new Error('an answer did not come')));
        socket.on('connect', () => converse(socket, resolve));
      });
    }),
  );
  const seconds = (performance.now() - startedAtMs) / 1000;
  pace.end();
  rest();
  const at = (percentile: number) => (answers === 0 ? 0 : micros.percentile(percentile) / 1000);
  return { answers, wrong, seconds, p50Ms: at(50), p99Ms: at(99) };
}

/**
 * Never sleeps while it asks. Waking a sleeping process is the server's work, in its system call that sends the answer,
 * and can cost more than the answer itself: the slower of two servers would pay it more often.
 */
function stayAwake(): () => void {
  let isAwake = true;
  const look = () => {
    if (isAwake) setImmediate(look);
  };
  look();
  return () => {
    isAwake = false;
  };
}

function isWhole(text: string): boolean {
  const headEnd = text.indexOf('\r\n\r\n');
  if (headEnd < 0) return false;
  const length = /\r\ncontent-length: (\d+)/i.exec(text)?.[1];
  return text.length >= headEnd + 4 + Number(length ?? 0);
}

/** Lets so many through each second, in steps of a few milliseconds; all at once where no pace is set. */
function createPace(requestsASecond: number | undefined) {
  if (requestsASecond === undefined) return { permit: (send: () => void) => send(), end: () => undefined };
  const waiting: Array<() => void> = [];
  const startedAtMs = performance.now();
  let permitted = 0;
  const timer = setInterval(() => {
    const due = ((performance.now() - startedAtMs) / 1000) * requestsASecond;
    for (; permitted < due; permitted++) waiting.shift()?.();
  }, 2);
  return { permit: (send: () => void) => void waiting.push(send), end: () => clearInterval(timer) };
}
