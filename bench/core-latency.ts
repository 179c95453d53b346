import { once } from 'node:events';
import { Worker } from 'node:worker_threads';

const measuredForMs = 20;
/** Few: where there is only one core, each return waits for the scheduler, 8 ms. */
const returnsInLook = 50;

/**
 * How long a line of memory takes from one core to another and back. A virtual machine's cores can lie in one
 * processor's cache or in two, and change that while it runs; whatever two processes hand to each other, as a client
 * and a server do, is then slower.
 * @returns nanoseconds, the best of several looks
 */
export async function measureCoreDistance(): Promise<number> {
  const memory = new SharedArrayBuffer(4);
  const ball = new Int32Array(memory);
  const worker = new Worker(new URL('core-latency-worker.mjs', import.meta.url), { workerData: memory, execArgv: [] });
  try {
    await once(worker, 'online');
    const endsAtMs = performance.now() + measuredForMs;
    let best = Number.POSITIVE_INFINITY;
    for (let sent = 0; performance.now() < endsAtMs; ) {
      const startedAtMs = performance.now();
      for (let returns = 0; returns < returnsInLook; returns++) {
        sent += 2;
        Atomics.store(ball, 0, sent);
        while (Atomics.load(ball, 0) !== sent + 1);
      }
      best = Math.min(best, ((performance.now() - startedAtMs) / returnsInLook) * 1e6);
    }
    return best;
  } finally {
    await worker.terminate();
  }
}
