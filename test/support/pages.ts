import { mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import type { Json } from './app.ts';
import type { ListeningService } from './hook.ts';
import { scratch } from './instance.ts';
import { eventually, type RunningProcess, run } from './process.ts';

// Runs the commands of the docs pages. The reply must contain everything that the page shows; `…` stands for any value.

/** An `sh` block, and the `json` block with its reply. */
export interface Step {
  command: string;
  shown: string | undefined;
}

/** @param sections the headings whose blocks are used; all by default */
export async function stepsOf(file: string, sections?: readonly string[]): Promise<Step[]> {
  const text = (await readFile(file, 'utf8'))
    .split(/^(?=## )/m)
    .filter((part) => sections === undefined || sections.some((heading) => part.startsWith(`## ${heading}\n`)))
    .join('');
  const steps: Step[] = [];
  for (const [, language, block = ''] of text.matchAll(/^```(\w+)\n(.*?)^```$/gms)) {
    const last = steps.at(-1);
    if (language === 'sh') steps.push({ command: block, shown: undefined });
    else if (language === 'json' && last !== undefined && last.shown === undefined) last.shown = block;
    else if (language === 'json') throw new Error(`${file} has a block that belongs to no command:\n${block}`);
  }
  return steps;
}

/** A folder like the one of `npm start`, with the tokens of a listening service. */
export async function startFolder(t: Test, service: ListeningService): Promise<string> {
  const { url, organizationId, admin, verifier, operator } = service;
  const { key } = (await admin.post('/v1/keys', { name: 'First key' })).body;
  const tokens = { adminToken: admin.token, verifierToken: verifier.token, operatorToken: operator.token };
  const folder = await scratch(t);
  await mkdir(path.join(folder, '.latchkey'));
  const credentials = JSON.stringify({ url, organizationId, ...tokens, key });
  await writeFile(path.join(folder, '.latchkey', 'credentials.json'), credentials);
  return folder;
}

/** One bash for all commands, like one terminal. */
export interface Shell {
  /** @returns its stdout @throws Error if its exit code is not 0 */
  paste(command: string): Promise<string>;
}

export function openShell(t: Test, cwd: string, options: Parameters<typeof run>[3] = {}): Shell {
  const bash: RunningProcess = run(t, 'bash', [], { cwd, ...options });
  let pasted = 0;
  return {
    async paste(command) {
      pasted += 1;
      const before = bash.stdout().length;
      const end = new RegExp(`\nend of ${pasted}: (\\d+)\n$`);
      // A command that reads its input must not get the following commands.
      bash.child.stdin?.write(`{\n${command}\n} < /dev/null; printf '\\nend of ${pasted}: %s\\n' $?\n`);
      const [endLine, code] = await eventually(async () => end.exec(bash.stdout().slice(before)) ?? undefined, 180_000);
      if (code !== '0') throw new Error(`${command}ended with ${code}:\n${bash.output()}`);
      return bash.stdout().slice(before, -endLine.length);
    },
  };
}

/** Runs the steps in order, and compares each reply with the page. */
export async function pasteSteps(t: Test, steps: readonly Step[], shell: Shell): Promise<void> {
  for (const { command, shown } of steps) {
    const output = await shell.paste(command);
    if (shown === undefined) {
      t.match(command, /^export /, 'only commands that set variables have no reply');
      for (const [, name] of command.matchAll(/(?:^export)? ([A-Z_]+)=/gm)) {
        t.notMatch((await shell.paste(`echo "value: $${name}"`)).trim(), /^value: (null)?$/, `${name} is set`);
      }
      continue;
    }
    t.same(asShown(JSON.parse(output), JSON.parse(shown)), JSON.parse(shown), command);
  }
}

/** Reduces the reply to what the page shows, with `…` for any value. */
function asShown(reply: Json, shown: Json): Json {
  if (typeof shown === 'string' && typeof reply === 'string' && shown.endsWith('…')) {
    return reply.length > shown.length && reply.startsWith(shown.slice(0, -1)) ? shown : reply;
  }
  if (Array.isArray(shown) && Array.isArray(reply)) return reply.map((member, at) => asShown(member, shown[at]));
  if (typeof shown !== 'object' || shown === null || typeof reply !== 'object' || reply === null) return reply;
  return Object.fromEntries(Object.entries(shown).map(([name, member]) => [name, asShown(reply[name], member)]));
}
