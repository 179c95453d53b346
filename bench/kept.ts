import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { Secret } from '../src/crypto/secret.ts';

/** Writes facts of a bench beside its database. Secrets are written as text: they open nothing but the bench's own data. */
export function writeKept(directory: string, name: string, facts: object): void {
  const text = JSON.stringify(facts, function (this: Record<string, unknown>, member, value) {
    const original = this[member];
    return original instanceof Secret ? { secret: original.reveal() } : value;
  });
  writeFileSync(fileOf(directory, name), text, { mode: 0o600 });
}

/** @returns what `writeKept` wrote; undefined if there is nothing yet */
export function readKept<Facts>(directory: string, name: string): Facts | undefined {
  const file = fileOf(directory, name);
  if (!existsSync(file)) return undefined;
  return JSON.parse(readFileSync(file, 'utf8'), (_member, value) =>
    typeof value?.secret === 'string' ? new Secret(value.secret) : value,
  );
}

function fileOf(directory: string, name: string): string {
  return path.join(directory, `${name}.kept.json`);
}
