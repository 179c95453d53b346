import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { type Json, startService, type TestService } from './support/app.ts';
import { run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';

// Every command of the pages for people, as they stand there, in one shell after the other against a service that listens.
// What a page shows of a reply has to be in it; `…` stands for whatever is there.

const skip = unlessInstalled('curl') || unlessInstalled('jq');

for (const pages of [['cookbook'], ['undo-and-rotation']]) {
  t.test(`the commands of ${pages} after those of the quick start`, { skip }, async (t) => {
    const service = await startService(t);
    const shell = await openShell(t, service);
    for (const page of ['quick-start', ...pages]) await runPage(t, page, shell);
  });
}

interface Step {
  command: string;
  shown: string | undefined;
}

/** Each `sh` block, with the `json` block that shows its reply. */
async function stepsOf(page: string): Promise<Step[]> {
  const text = await readFile(`docs/${page}.md`, 'utf8');
  const steps: Step[] = [];
  for (const [, language, block = ''] of text.matchAll(/^```(\w+)\n(.*?)^```$/gms)) {
    const last = steps.at(-1);
    if (language === 'sh') steps.push({ command: block, shown: undefined });
    else if (language === 'json' && last !== undefined && last.shown === undefined) last.shown = block;
    else throw new Error(`docs/${page}.md has a block that belongs to no command:\n${block}`);
  }
  return steps;
}

type Shell = (command: string) => Promise<string>;

async function runPage(t: Test, page: string, shell: Shell): Promise<void> {
  const steps = await stepsOf(page);
  t.ok(steps.length > 4, `docs/${page}.md has ${steps.length} commands`);
  for (const { command, shown } of steps) {
    const output = await shell(command);
    if (shown === undefined) {
      t.match(command, /^export /, 'only setting variables shows nothing');
      continue;
    }
    const reply = JSON.parse(output);
    t.same(asShown(reply, JSON.parse(shown)), JSON.parse(shown), command);
  }
}

/** The reply with only what the page shows of it, and `…` where the page has it and something is there. */
function asShown(reply: Json, shown: Json): Json {
  if (typeof shown === 'string' && typeof reply === 'string' && shown.endsWith('…')) {
    return reply.length > shown.length && reply.startsWith(shown.slice(0, -1)) ? shown : reply;
  }
  if (Array.isArray(shown) && Array.isArray(reply)) return reply.map((member, at) => asShown(member, shown[at]));
  if (typeof shown !== 'object' || shown === null || typeof reply !== 'object' || reply === null) return reply;
  return Object.fromEntries(Object.entries(shown).map(([name, member]) => [name, asShown(reply[name], member)]));
}

/** One command after the other, each in a shell that knows the variables and files of those before. */
async function openShell(t: Test, service: TestService): Promise<Shell> {
  await service.app.listen({ port: 0, host: '127.0.0.1' });
  const url = `http://127.0.0.1:${(service.app.server.address() as AddressInfo).port}`;
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-commands-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const credentials = path.join(directory, 'credentials.json');
  const { organizationId, admin, verifier, operator } = service;
  const tokens = { adminToken: admin.token, verifierToken: verifier.token, operatorToken: operator.token };
  await writeFile(credentials, JSON.stringify({ organizationId, ...tokens }));
  await writeFile(path.join(directory, 'variables'), '');
  return async (command) => {
    const here = command.replaceAll('http://127.0.0.1:8080', url);
    const script = `set -eu; . ./variables; set -o allexport\n${here}\nexport -p > variables`;
    const shell = run(t, 'bash', ['-c', script], { cwd: directory, env: { CREDENTIALS: credentials } });
    const { code } = await shell.exited;
    if (code !== 0) throw new Error(`${command}ended with ${code}:\n${shell.output()}`);
    return shell.stdout();
  };
}
