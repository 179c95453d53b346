import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import { scratch } from './support/instance.ts';
import { type RunningProcess, run, runCompiled } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// `npm run demo` as a newcomer uses it.

function startDemo(t: Test, env: NodeJS.ProcessEnv): RunningProcess {
  return runCompiled(t, 'docs/demo/run.ts', [], { env: { PORT: '0', ...env } });
}

/** The printed commands with their descriptions. */
function commandsIn(output: string): Array<{ what: string; command: string }> {
  return [...output.matchAll(/^(.+):\n(curl .*)$/gm)].map(([, what = '', command = '']) => ({ what, command }));
}

t.test('the demo fills its own instance, ends on Ctrl-C, and keeps its data for the next start', async (t) => {
  const env = { LATCHKEY_DATA_DIR: await scratch(t) };
  const first = startDemo(t, env);
  await first.until(/Ctrl-C stops the demo/);
  t.notMatch(first.output(), /"level":(40|50|60)|"level":"(warn|error|fatal)"/, 'no warning is logged');

  const skip = unlessInstalled('curl');
  await t.test('each printed command shows what its description says', { skip }, async (t) => {
    const commands = commandsIn(first.output());
    const shows = [
      /"partnerEmail":"keys@shipping\.example".*"expiringSoon":\["key_/,
      /"The partner lost it".*/,
      /"rateLimited":[1-9]/,
      /"action":"key\.used_after_deletion".*"action":"key\.deleted"/,
      /"valid":true/,
      /"status":"open"/,
      /^latchkey_/m,
    ];
    t.equal(commands.length, shows.length);
    for (const [index, { what, command }] of commands.entries()) {
      const shell = run(t, 'sh', ['-c', command]);
      t.equal((await shell.exited).code, 0);
      t.match(shell.stdout(), shows[index], what);
    }
  });

  first.child.kill('SIGINT');
  t.same(await first.exited, { code: 0, signal: null });

  const second = startDemo(t, env);
  await second.until(/Ctrl-C stops the demo/);
  t.notMatch(second.output(), /Creating sample data/, 'the data is not filled twice');
  second.child.kill('SIGTERM');
  t.same(await second.exited, { code: 0, signal: null });
});

t.test('the demo fills only its own instance', async (t) => {
  const refused = async (env: NodeJS.ProcessEnv, why: RegExp) => {
    const process = startDemo(t, env);
    t.equal((await process.exited).code, 1);
    t.match(process.output(), why);
  };
  const directory = await scratch(t);
  await refused({ DATABASE_URL: 'postgres://a:b@127.0.0.1:1/c', LATCHKEY_DATA_DIR: directory }, /DATABASE_URL is set/);
  await refused({ DATABASE_URL_FILE: '/x', LATCHKEY_DATA_DIR: directory }, /DATABASE_URL_FILE is set/);
  await mkdir(path.join(directory, 'postgres'));
  await refused({ LATCHKEY_DATA_DIR: directory }, /contains files that the demo has not created/);
  await writeFile(path.join(directory, 'demo'), 'begun');
  await refused({ LATCHKEY_DATA_DIR: directory }, /was interrupted/);
});

t.test('Ctrl-C ends the demo also while it fills its data', async (t) => {
  const running = startDemo(t, { LATCHKEY_DATA_DIR: await scratch(t) });
  await running.until(/Creating sample data/);
  running.child.kill('SIGINT');
  t.same(await running.exited, { code: 0, signal: null });
});
