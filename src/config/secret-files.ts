import { readFileSync } from 'node:fs';

/**
 * Secrets that come as files, the way container platforms hand them out. An environment shows in `docker inspect`, in
 * crash reports and to every child process; a file can be read by whom its mode lets.
 */

/** The variables that are secrets. `NAME_FILE` names a file with the text of `NAME`. */
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

export interface SecretsRead {
  /** The environment with each secret's text under its plain name, and no names of files. */
  env: Record<string, string>;
  /** Under which name somebody set it: that is the one to complain about. */
  sourceOf(name: string): string;
  /** Secrets that were set and yet have no value, because of one of the problems. */
  isUnreadable(name: SecretName): boolean;
  problems: string[];
}

/** Reads the files. Line breaks at the end are an editor's and not the secret's. */
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

/** The text is put into `env`; what is returned is why it could not be. */
function readInto(env: Record<string, string>, name: SecretName, file: string): string | undefined {
  try {
    const text = readFileSync(file, 'utf8').replace(/[\r\n]+$/, '');
    if (text === '') return `${file} is empty.`;
    env[name] = text;
    return undefined;
  } catch (error) {
    // The system's message names the path and never what is in the file.
    return `cannot be read (${error instanceof Error ? error.message : String(error)}).`;
  }
}
