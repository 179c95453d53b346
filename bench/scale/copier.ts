import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type pg from 'pg';

/** Written at once: the next part is made while Postgres reads this one. */
const partCharacters = 16_000_000;

type Field = string | number | boolean | null | Buffer | readonly string[];

/** Fills a table with COPY. */
export interface Copier {
  add(...fields: Field[]): Promise<void>;
  end(): Promise<void>;
}

/** @param columns the order of the fields; no text contains a tab, a line break or a backslash */
export function copyInto(client: pg.Client, table: string, columns: string): Copier {
  let lines: string[] = [];
  let characters = 0;
  let parts = 0;
  let running: Promise<unknown> = Promise.resolve();
  let folder: Promise<string> | undefined;

  async function flush(): Promise<void> {
    if (lines.length === 0) return;
    const text = lines.join('');
    [lines, characters] = [[], 0];
    await running;
    folder ??= mkdtemp(path.join(tmpdir(), 'latchkey-copy-'));
    parts += 1;
    const file = path.join(await folder, `${table}-${parts}`);
    await writeFile(file, text);
    running = copy(file);
    // Handled where it is awaited.
    running.catch(() => undefined);
  }

  /** The server reads the file, so the client's event loop is free. */
  async function copy(file: string): Promise<void> {
    await chmod(path.dirname(file), 0o755);
    await client.query(`copy ${table} (${columns}) from '${file}'`);
    await rm(file);
  }

  return {
    async add(...fields) {
      const line = `${fields.map(toText).join('\t')}\n`;
      lines.push(line);
      characters += line.length;
      if (characters > partCharacters) await flush();
    },
    async end() {
      await flush();
      await running;
      if (folder !== undefined) await rm(await folder, { recursive: true });
    },
  };
}

function toText(field: Field): string {
  if (field === null) return '\\N';
  if (Buffer.isBuffer(field)) return `\\\\x${field.toString('hex')}`;
  if (typeof field === 'object') return `{${field.join(',')}}`;
  return String(field);
}
