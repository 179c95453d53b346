// The second thread of core-latency.ts: replies to each even number with the next odd number.
import { workerData } from 'node:worker_threads';

const counter = new Int32Array(workerData);
for (let expected = 2; ; expected += 2) {
  while (Atomics.load(counter, 0) !== expected);
  Atomics.store(counter, 0, expected + 1);
}
