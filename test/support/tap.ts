import tap, { type Test } from 'tap';

/**
 * The test that the running file adds its own tests to. `test/worker.ts` replaces it for each file; without the worker,
 * with `node`, it is the process's own.
 */
export let t: Test = tap;

/** Runs a test file as one test among others of this process. */
export function setFileTest(fileTest: Test): void {
  t = fileTest;
}
