// The other end of core-latency.ts: answers each even number with the next odd one until it is ended.
import { workerData } from 'node:worker_threads';

const ball = new Int32Array(workerData);
for (let expected = 2; ; expected += 2) {
  while (Atomics.load(ball, 0) !== expected);
  Atomics.store(ball, 0, expected + 1);
}
