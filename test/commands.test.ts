import { mkdir, writeFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import t, { type Test } from 'tap';
import { startService } from './support/app.ts';
import { scratch } from './support/instance.ts';
import { openShell, pasteSteps, stepsOf } from './support/pages.ts';
import { unlessInstalled } from './support/programs.ts';

// Every command of the pages for people, pasted into one shell against a service that listens, with nothing set.

const skip = unlessInstalled('curl') || unlessInstalled('jq');

for (const page of ['quick-start', 'cookbook', 'undo-and-rotation']) {
  t.test(`the commands of ${page}`, { skip }, async (t) => {
    const shell = openShell(t, await startFolder(t));
    const steps = await stepsOf(`docs/${page}.md`);
    // A name that resolves only where there is a network.
    for (const step of steps) step.command = step.command.replace('https://example.com/', 'http://127.0.0.1:9/');
    t.ok(steps.length > 4, `docs/${page}.md has ${steps.length} commands`);
    await pasteSteps(t, steps, shell);
  });
}

/** A folder as `npm start` leaves it, with the tokens of a service that listens. */
async function startFolder(t: Test): Promise<string> {
  const { app, organizationId, admin, verifier, operator } = await startService(t);
  await app.listen({ port: 0, host: '127.0.0.1' });
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`;
  const { key } = (await admin.post('/v1/keys', { name: 'First key' })).body;
  const tokens = { adminToken: admin.token, verifierToken: verifier.token, operatorToken: operator.token };
  const folder = await scratch(t);
  await mkdir(path.join(folder, '.latchkey'));
  const credentials = JSON.stringify({ url, organizationId, ...tokens, key });
  await writeFile(path.join(folder, '.latchkey', 'credentials.json'), credentials);
  return folder;
}
