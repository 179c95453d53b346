import { readFileSync } from 'node:fs';
import { z } from 'zod';

// Container platforms mount secrets as files. Environment variables are visible in `docker inspect`, in crash reports and
// to every child process; a file's mode decides who can read it.

/** The settings that are secrets. `NAME_FILE` names a file that holds the value of `NAME`. */
export const secretNames = [
  'DATABASE_URL',
  'MIGRATION_DATABASE_URL',
  'LISTEN_DATABASE_URL',
  'LATCHKEY_KEYRING',
  'REDIS_URL',
  'CHECKPOINT_URL',
] as const;

export type SecretName = (typeof secretNames)[number];
export type SecretFileName = `${SecretName}_FILE`;

/** The setting with the name of a secret's file. */
export function secretFile(name: SecretName) {
  return z
    .string()
    .optional()
    .meta({
      description: `A file that holds the value of ${name}. Set one of the two.`,
      example: `/run/secrets/${name.toLowerCase()}`,
    });
}

export interface SecretsRead {
  /** The environment, with the value of each secret under its plain name and without the names of files. */
  env: Record<string, string>;
  /** The name under which the secret was set: `NAME` or `NAME_FILE`. Error messages use it. */
  sourceOf(name: string): string;
  /** Whether the secret was set but has no value, because of one of the problems. */
  isUnreadable(name: SecretName): boolean;
  problems: string[];
}

/** Reads the secret files. Line breaks at the end of a file are dropped: editors add them. */
export function readSecretFiles(given: Readonly<Record<string, string>>): SecretsRead {
  const env = { ...given };
  const problems: string[] = [];
  const fromFile = new Set<string>();
  const unreadable = new Set<SecretName>();
  for (const name of secretNames) {
    const fileName: SecretFileName = `${name}_FILE`;
    const file = given[fileName];
    if (file === undefined) continue;
    delete env[fileName];
    if (given[name] !== undefined) {
      problems.push(`${name} and ${fileName} are both set: set one of them.`);
      continue;
    }
    fromFile.add(name);
    const problem = readInto(env, name, file);
    if (problem === undefined) continue;
    unreadable.add(name);
    problems.push(`${fileName}: ${problem}`);
  }
  return {
    env,
    sourceOf: (name) => (fromFile.has(name) ? `${name}_FILE` : name),
    isUnreadable: (name) => unreadable.has(name),
    problems,
  };
}

/** Stores the file's text in `env`. @returns the problem, if there is one */
function readInto(env: Record<string, string>, name: SecretName, file: string): string | undefined {
  try {
    const text = readFileSync(file, 'utf8').replace(/[\r\n]+$/, '');
    if (text === '') return `${file} is empty.`;
    env[name] = text;
    return undefined;
  } catch (error) {
    // The system's message names the path, never the content.
    return `cannot be read (${error instanceof Error ? error.message : String(error)}).`;
  }
}
