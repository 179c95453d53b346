import { once } from 'node:events';
import { Worker } from 'node:worker_threads';

const durationMs = 20;
/** Few, because on a machine with one core each round trip waits 8 ms for the scheduler. */
const roundTripsPerSample = 50;

/**
 * Measures the round trip of a cache line between two cores. Hypervisors move virtual cores, so it changes during a run;
 * samples with very different values do not compare.
 * @returns nanoseconds, the minimum of several samples
 */
export async function measureCoreLatency(): Promise<number> {
  const memory = new SharedArrayBuffer(4);
  const counter = new Int32Array(memory);
  const worker = new Worker(new URL('core-latency-worker.mjs', import.meta.url), { workerData: memory, execArgv: [] });
  try {
    await once(worker, 'online');
    const endsAtMs = performance.now() + durationMs;
    let minimum = Number.POSITIVE_INFINITY;
    for (let sent = 0; performance.now() < endsAtMs; ) {
      const startedAtMs = performance.now();
      for (let roundTrips = 0; roundTrips < roundTripsPerSample; roundTrips++) {
        sent += 2;
        Atomics.store(counter, 0, sent);
        while (Atomics.load(counter, 0) !== sent + 1);
      }
      minimum = Math.min(minimum, ((performance.now() - startedAtMs) / roundTripsPerSample) * 1e6);
    }
    return minimum;
  } finally {
    await worker.terminate();
  }
}
