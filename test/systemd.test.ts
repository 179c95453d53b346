import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import { environment } from '../src/config/config.ts';
import { run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// docs/latchkey.service, as far as it can be checked without systemd running.

const unit = await readFile('docs/latchkey.service', 'utf8');

/** systemd-analyze wants the program to be there, so another one stands in. */
async function analyze(t: Test, text: string, ...args: string[]) {
  const file = path.join(t.testdir({}), 'latchkey.service');
  await writeFile(file, text.replace('/usr/local/bin/latchkey', process.execPath));
  const analysis = run(t, 'systemd-analyze', [...args, file]);
  return { code: (await analysis.exited).code, output: analysis.output() };
}

const skip = unlessInstalled('systemd-analyze');

t.test('systemd has no objection to the unit', { skip }, async (t) => {
  t.same(await analyze(t, unit, 'verify', '--man=no'), { code: 0, output: '' });
  const misspelt = await analyze(t, unit.replace('TimeoutStopSec', 'TimeoutStopSecs'), 'verify', '--man=no');
  t.match(misspelt.output, /Unknown key/, 'a wrong word would be found');
});

t.test('and counts it among the well-protected ones', { skip }, async (t) => {
  const { code, output } = await analyze(t, unit, 'security', '--offline=true', '--threshold=20');
  t.equal(code, 0, output.trimEnd().split('\n').pop() ?? '');
});

t.test('it sets variables of Latchkey’s, from credentials that it loads', async (t) => {
  const [, variables = ''] = /^Environment=(.+)$/m.exec(unit) ?? [];
  const loaded = [...unit.matchAll(/^LoadCredential=(\w+):/gm)].map(([, name]) => name);
  for (const variable of variables.split(' ')) {
    const [name = '', value = ''] = variable.split('=');
    t.ok(name in environment.shape, name);
    if (name.endsWith('_FILE')) t.ok(loaded.includes(value.replace('%d/', '')), value);
  }
  const page = await readFile('docs/operations.md', 'utf8');
  for (const name of loaded) t.match(page, `> /etc/latchkey/${name}\n`);
});

t.test('it waits for the end for as long as the service takes', async (t) => {
  const serve = await readFile('src/cli/serve.ts', 'utf8');
  const [, stopMs = ''] = /stopWithinMs = ([0-9_]+)/.exec(serve) ?? [];
  const [, seconds = ''] = /^TimeoutStopSec=(\d+)$/m.exec(unit) ?? [];
  t.ok(Number(seconds) * 1_000 > Number(stopMs.replaceAll('_', '')) + 2_000);
  t.match(unit, /^RestartPreventExitStatus=78$/m);
});
