import { runScript } from './support/process.ts';
import { t } from './support/tap.ts';
import { countAsserts } from './support/tap-counts.ts';

t.test('a missing test file fails the run with its name, before anything is started', async (t) => {
  const runner = runScript(t, 'test/run.ts', ['--jobs=1', 'test/runner.test.ts', 'nonesuch.test.ts', 'test/none']);
  t.equal((await runner.exited).code, 1);
  t.match(runner.output(), 'There is no such file: nonesuch.test.ts, test/none\n0 passed, 2 failed\n');
});

t.test('assertions are counted without subtests, and each failure has its name and TAP details', async (t) => {
  const tap = `TAP version 14
# Subtest: a page
    ok 1 - has entries
    # Subtest: has a next one
        not ok 1 - should be equal
          ---
          diff: 1 is not 2
          ...
        1..1
        # failed 1 test
    not ok 2 - has a next one # time=2ms
    ok 3 - elsewhere # SKIP nginx is not installed
    1..3
not ok 1 - a page # time=3ms
# Subtest: throws
    not ok 1 - boom
    1..1
not ok 2 - throws # time=1ms
ok 3 - at the top
1..3
`;
  t.same(countAsserts('test/a.test.ts', tap), {
    passed: 2,
    failures: [
      {
        path: 'test/a.test.ts > a page > has a next one > should be equal',
        details: '          diff: 1 is not 2',
      },
      { path: 'test/a.test.ts > throws > boom', details: '' },
    ],
    skipped: ['elsewhere: nginx is not installed'],
  });
});
