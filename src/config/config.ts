import { z } from 'zod';
import { type Keyring, KeyringError, parseKeyring } from '../crypto/keyring.ts';
import { type TlsDefaults, tlsProblem, withTls } from '../database/tls-url.ts';
import { type OidcSettings, oidcEnvironment, oidcProblems, oidcSettingsOf } from '../oidc/settings.ts';
import { readSecretFiles, type SecretFileName, type SecretsRead } from './secret-files.ts';
import { argon2Settings } from './settings/argon2.ts';
import { databaseSettings } from './settings/database.ts';
import { historySettings } from './settings/history.ts';
import { keyringSettings } from './settings/keyring.ts';
import { limitsSettings } from './settings/limits.ts';
import { serviceSettings } from './settings/service.ts';
import { verificationSettings } from './settings/verification.ts';
import { webhooksSettings } from './settings/webhooks.ts';

/** The exit code for a configuration that cannot work: EX_CONFIG of sysexits(3). */
export const configExitCode = 78;

/**
 * Every setting: its form, its default, a description and an example. `npm run docs` writes docs/configuration.md from
 * this object. An empty variable counts as not set.
 */
export const environment = z.object({
  ...serviceSettings,
  ...databaseSettings,
  ...keyringSettings,
  ...limitsSettings,
  ...verificationSettings,
  ...historySettings,
  ...webhooksSettings,
  ...oidcEnvironment,
  ...argon2Settings,
});

export type Config = Readonly<Omit<z.infer<typeof environment>, 'LATCHKEY_KEYRING' | SecretFileName>> & {
  /** Undefined if none is configured: with the embedded database, one is created. */
  readonly keyring: Keyring | undefined;
  /** Undefined: no identity provider is configured. */
  readonly oidc: OidcSettings | undefined;
};

/** Lists every problem of the environment, each in one line with the variable's name and an example. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(`The configuration has problems:\n${problems.map((problem) => `  ${problem}`).join('\n')}`);
    this.problems = problems;
  }
}

/**
 * Reads and checks all settings. No other code reads the environment.
 * @param needs `keyring`: whether a process without a keyring is useless (with the embedded database it is optional);
 * `database`: whether the embedded database is not enough
 * @throws ConfigError
 */
export function readConfig(
  env: NodeJS.ProcessEnv,
  needs: { keyring: boolean; database?: boolean } = { keyring: true },
): Config {
  const secrets = readSecretFiles(setVariables(env));
  const given = secrets.env;
  const parsed = environment.safeParse(given);
  const problems = [...secrets.problems];
  if (!parsed.success) problems.push(...parsed.error.issues.map((issue) => describeIssue(issue, secrets)));
  const keyring = readKeyring(secrets, needs.keyring, problems);
  const mayBeEmbedded = given['DATABASE_URL'] === undefined && !secrets.isUnreadable('DATABASE_URL');
  if (mayBeEmbedded && needs.database) {
    problems.push(
      `DATABASE_URL or DATABASE_URL_FILE must be set, for example DATABASE_URL=${exampleOf('DATABASE_URL')}. ` +
        '`latchkey serve` does not start a database. To try Latchkey without one, use `latchkey try`.',
    );
  } else if (given['MIGRATION_DATABASE_URL'] !== undefined && mayBeEmbedded && needs.keyring) {
    problems.push(
      'MIGRATION_DATABASE_URL is set without DATABASE_URL, so the service would start an embedded database. Set both or neither.',
    );
  }
  if (parsed.success && parsed.data.UNDO_WINDOW_SECONDS > parsed.data.RETENTION_SECONDS) {
    const { UNDO_WINDOW_SECONDS: undo, RETENTION_SECONDS: retention } = parsed.data;
    problems.push(
      `UNDO_WINDOW_SECONDS (${undo}) must not be longer than RETENTION_SECONDS (${retention}), for example UNDO_WINDOW_SECONDS=${retention}.`,
    );
  }
  const { PORT: port = 0, METRICS_PORT: metricsPort } = parsed.data ?? {};
  if (port !== 0 && port === metricsPort) {
    problems.push('METRICS_PORT must not be the same as PORT. To serve /metrics on PORT, do not set METRICS_PORT.');
  }
  if (parsed.success) problems.push(...tlsProblems(parsed.data, secrets), ...oidcProblems(parsed.data));
  if (!parsed.success || problems.length > 0) throw new ConfigError(problems);
  const { LATCHKEY_KEYRING, ...variables } = parsed.data;
  return Object.freeze({ ...variables, ...urlsWithTls(variables), keyring, oidc: oidcSettingsOf(variables) });
}

const databaseUrls = ['DATABASE_URL', 'MIGRATION_DATABASE_URL', 'LISTEN_DATABASE_URL'] as const;

type Variables = z.infer<typeof environment>;

function tlsProblems(given: Variables, { sourceOf }: SecretsRead): string[] {
  const problemOf = (name: string, url: string | undefined) => {
    const problem = url === undefined ? undefined : tlsProblem(url);
    return problem === undefined ? [] : [`${name} ${problem}.`];
  };
  // A URL to which only PGSSLROOTCERT applies.
  const { PGSSLROOTCERT: file } = given;
  const fallback = withTls('postgres://host', { PGSSLMODE: 'verify-full', PGSSLROOTCERT: file });
  return [
    ...databaseUrls.flatMap((name) => problemOf(sourceOf(name), given[name])),
    ...(file === undefined ? [] : problemOf('PGSSLROOTCERT', fallback)),
  ];
}

function urlsWithTls(given: Pick<Variables, (typeof databaseUrls)[number] | keyof TlsDefaults>) {
  const urls: Partial<Record<(typeof databaseUrls)[number], string>> = {};
  for (const name of databaseUrls) {
    const url = given[name];
    if (url !== undefined) urls[name] = withTls(url, given);
  }
  return urls;
}

function setVariables(env: NodeJS.ProcessEnv): Record<string, string> {
  return Object.fromEntries(
    Object.entries(env).filter((entry): entry is [string, string] => entry[1] !== undefined && entry[1] !== ''),
  );
}

/** The message does not repeat the value: it may be a password. */
function describeIssue(issue: z.core.$ZodIssue, { sourceOf }: SecretsRead): string {
  const name = String(issue.path[0]);
  const source = sourceOf(name);
  if (source !== name) return `${source}: the text of the file ${issue.message}.`;
  return `${name} ${issue.message}, for example ${name}=${exampleOf(name)}`;
}

/** The example of a setting, as documented. */
export function exampleOf(name: string): string {
  const schema = environment.shape[name as keyof typeof environment.shape];
  return String(z.globalRegistry.get(schema)?.['example'] ?? '');
}

function readKeyring(secrets: SecretsRead, needed: boolean, problems: string[]): Keyring | undefined {
  const { LATCHKEY_KEYRING: text, DATABASE_URL: url } = secrets.env;
  if (text !== undefined) {
    try {
      return parseKeyring(text, environment.shape.LOST_KEYRING_IDS.parse(secrets.env['LOST_KEYRING_IDS']));
    } catch (error) {
      if (!(error instanceof KeyringError)) throw error;
      const name = secrets.sourceOf('LATCHKEY_KEYRING');
      problems.push(`${name}: ${error.message}, for example ${name}=${exampleOf(name)}`);
      return undefined;
    }
  }
  if (needed && url !== undefined && !secrets.isUnreadable('LATCHKEY_KEYRING')) {
    problems.push(
      `LATCHKEY_KEYRING or LATCHKEY_KEYRING_FILE must be set with DATABASE_URL, for example LATCHKEY_KEYRING=${exampleOf('LATCHKEY_KEYRING')}. ` +
        'Keep it apart from the database and its backups.',
    );
  }
  return undefined;
}
