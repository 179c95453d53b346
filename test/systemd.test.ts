import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import { environment } from '../src/config/config.ts';
import { run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// Checks docs/latchkey.service without a running systemd.

const unit = await readFile('docs/latchkey.service', 'utf8');

/** systemd-analyze needs an existing program, so another program is named. */
async function analyze(t: Test, text: string, ...args: string[]) {
  const file = path.join(t.testdir({}), 'latchkey.service');
  await writeFile(file, text.replace('/usr/local/bin/latchkey', process.execPath));
  const analysis = run(t, 'systemd-analyze', [...args, file]);
  return { code: (await analysis.exited).code, output: analysis.output() };
}

const skip = unlessInstalled('systemd-analyze');

t.test('systemd-analyze accepts the unit', { skip }, async (t) => {
  t.same(await analyze(t, unit, 'verify', '--man=no'), { code: 0, output: '' });
  const misspelt = await analyze(t, unit.replace('TimeoutStopSec', 'TimeoutStopSecs'), 'verify', '--man=no');
  t.match(misspelt.output, /Unknown key/, 'a misspelt setting would be found');
});

t.test('systemd-analyze rates the unit as well protected', { skip }, async (t) => {
  const { code, output } = await analyze(t, unit, 'security', '--offline=true', '--threshold=20');
  t.equal(code, 0, output.trimEnd().split('\n').pop() ?? '');
});

t.test('the unit sets variables of Latchkey, from loaded credentials', async (t) => {
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

t.test('the stop timeout is long enough for the service', async (t) => {
  const serve = await readFile('src/cli/serve.ts', 'utf8');
  const [, stopMs = ''] = /stopWithinMs = ([0-9_]+)/.exec(serve) ?? [];
  const [, seconds = ''] = /^TimeoutStopSec=(\d+)$/m.exec(unit) ?? [];
  t.ok(Number(seconds) * 1_000 > Number(stopMs.replaceAll('_', '')) + 2_000);
  t.match(unit, /^RestartPreventExitStatus=78$/m);
});
