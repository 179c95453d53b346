import { mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import type { Json } from './app.ts';
import type { ListeningService } from './hook.ts';
import { scratch } from './instance.ts';
import { eventually, type RunningProcess, run } from './process.ts';

// The commands of the pages for people, as they stand there. What a page shows of a reply has to be in it; `…` stands for
// whatever is there.

/** An `sh` block, with the `json` block that shows its reply. */
export interface Step {
  command: string;
  shown: string | undefined;
}

/** @param sections the headings whose blocks count; all of them if left out */
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

/** A folder as `npm start` leaves it, with the tokens of a service that listens. */
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

/** One bash for all commands, as a person has one terminal. */
export interface Shell {
  /** @returns what it wrote to stdout @throws Error where it ends with another code than 0 */
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
      // What reads its input does not get the commands that follow.
      bash.child.stdin?.write(`{\n${command}\n} < /dev/null; printf '\\nend of ${pasted}: %s\\n' $?\n`);
      const [whole, code] = await eventually(async () => end.exec(bash.stdout().slice(before)) ?? undefined, 180_000);
      if (code !== '0') throw new Error(`${command}ended with ${code}:\n${bash.output()}`);
      return bash.stdout().slice(before, -whole.length);
    },
  };
}

/** Pastes one step after the other, and holds each reply against what the page shows. */
export async function pasteSteps(t: Test, steps: readonly Step[], shell: Shell): Promise<void> {
  for (const { command, shown } of steps) {
    const output = await shell.paste(command);
    if (shown === undefined) {
      t.match(command, /^export /, 'only setting variables shows nothing');
      for (const [, name] of command.matchAll(/(?:^export)? ([A-Z_]+)=/gm)) {
        t.notMatch((await shell.paste(`echo "value: $${name}"`)).trim(), /^value: (null)?$/, `${name} is set`);
      }
      continue;
    }
    t.same(asShown(JSON.parse(output), JSON.parse(shown)), JSON.parse(shown), command);
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
