import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { startListening } from './support/hook.ts';
import { scratch } from './support/instance.ts';
import { openShell, pasteSteps, startFolder, stepsOf } from './support/pages.ts';
import { compiled } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { serve } from './support/served.ts';
import { t } from './support/tap.ts';

// Every command of these pages runs in one shell against a listening service.

const skip = unlessInstalled('curl') || unlessInstalled('jq');

for (const page of ['quick-start', 'cookbook', 'undo-and-rotation', 'leaks', 'policies']) {
  t.test(`the commands of ${page} work as printed`, { skip }, async (t) => {
    const shell = openShell(t, await startFolder(t, await startListening(t)));
    const steps = await stepsOf(`docs/${page}.md`);
    // This name resolves only with a network.
    for (const step of steps) step.command = step.command.replace('https://example.com/', 'http://127.0.0.1:9/');
    t.ok(steps.length > 4, `docs/${page}.md has ${steps.length} commands`);
    await pasteSteps(t, steps, shell);
  });
}

t.test("the commands for lost tokens work if all operators' tokens are lost", { skip }, async (t) => {
  const { url, env } = await serve(t);
  const folder = await scratch(t);
  const entry = compiled('src/cli/latchkey.ts');
  await writeFile(path.join(folder, 'latchkey'), `#!/bin/sh\nexec ${process.execPath} ${entry} "$@"\n`, {
    mode: 0o755,
  });
  const PATH = `${folder}:${process.env['PATH']}`;
  const shell = openShell(t, folder, { env: { ...env, PATH } });
  const steps = await stepsOf('docs/operations.md', ['Lost tokens']);
  t.equal(steps.length, 7);
  for (const step of steps) {
    step.command = step.command.replace('http://127.0.0.1:8080', url);
    step.shown = step.shown?.replace('Example Inc', 'Example');
  }
  await pasteSteps(t, steps, shell);
  const recorded = await shell.paste(
    'curl -s "$LATCHKEY/v1/history?limit=2" -H "Authorization: Bearer $OPERATOR_TOKEN" | jq "[.data[] | {action, by: .actor.type}]"',
  );
  t.same(JSON.parse(recorded), [
    { action: 'access_token.deleted', by: 'operator' },
    { action: 'access_token.created', by: 'system' },
  ]);
});
