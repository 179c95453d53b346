import t from 'tap';
import { runScript } from './support/process.ts';

t.test('a test file that is not there fails the run, by its name, before anything is started', async (t) => {
  const runner = runScript(t, 'test/run.ts', ['--jobs=1', 'test/runner.test.ts', 'nonesuch.test.ts', 'test/none']);
  t.equal((await runner.exited).code, 1);
  t.match(runner.output(), 'There is no such file: nonesuch.test.ts, test/none\n0 passed, 2 failed\n');
});
