import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import tap from 'tap';
import { compiled } from './support/process.ts';
import { setFileTest } from './support/tap.ts';

// Runs the test files whose names `test/run.ts` writes to it, one after the other in this process: what they import is
// loaded and compiled once.

const fileTimeoutMs = 300_000;

tap.setTimeout(0);
await tap.test('files', { timeout: 0 }, async (files) => {
  for await (const file of createInterface(process.stdin)) {
    await files.test(file, { timeout: fileTimeoutMs }, async (fileTest) => {
      setFileTest(fileTest);
      await import(pathToFileURL(compiled(file)).href);
    });
  }
});
