import { z } from 'zod';
import { type Keyring, KeyringError, parseKeyring } from '../crypto/keyring.ts';
import { type TlsDefaults, tlsModes, tlsProblem, withTls } from '../database/tls-url.ts';
import { boolean, httpUrl, integer, networks, postgresUrl, redisUrl } from '../lib/config-forms.ts';
import { type OidcSettings, oidcEnvironment, oidcProblems, oidcSettingsOf } from '../oidc/settings.ts';
import { readSecretFiles, type SecretFileName, type SecretName, type SecretsRead } from './secret-files.ts';

/** The exit code for a configuration that cannot work: EX_CONFIG of sysexits(3). */
export const configExitCode = 78;

function secretFile(name: SecretName) {
  return z
    .string()
    .optional()
    .meta({
      description: `A file with the same text, instead of ${name}.`,
      example: `/run/secrets/${name.toLowerCase()}`,
    });
}

/**
 * Every variable that Latchkey reads from the environment: its form, its default, and for people a description and an
 * example. `npm run docs` writes docs/configuration.md from this. An empty variable counts as one that is not set.
 */
export const environment = z.object({
  HOST: z.string().default('127.0.0.1').meta({
    description: 'Address to listen on; 0.0.0.0 for all of IPv4.',
    example: '0.0.0.0',
  }),
  PORT: integer(0, 65_535).optional().meta({
    description: 'Port to listen on. If not set: 8080, or another one if that is taken and the database is embedded.',
    example: '8080',
  }),
  DRAIN_SECONDS: integer(0, 300).default(1).meta({
    description: 'How long the service still takes requests after a signal to stop, while /readyz answers 503.',
    example: '10',
  }),
  METRICS_PORT: integer(0, 65_535).optional().meta({
    description: 'A port of its own for /metrics, which is then not on PORT. Not set: /metrics is on PORT.',
    example: '9464',
  }),
  OTEL_EXPORTER_OTLP_ENDPOINT: httpUrl.optional().meta({
    description: 'Where spans are sent by OTLP over HTTP. Not set: none are recorded.',
    example: 'http://collector:4318',
  }),
  OTEL_SERVICE_NAME: z.string().max(255).default('latchkey').meta({
    description: 'What this service is called in traces.',
    example: 'latchkey-eu',
  }),
  DATABASE_URL: postgresUrl.optional().meta({
    description:
      "Your own Postgres (15 to 18), as the service's role. Not set: `npm start` and `latchkey try` start an embedded one, `latchkey serve` does not start.",
    example: 'postgres://latchkey_app:…@db:5432/latchkey',
  }),
  DATABASE_URL_FILE: secretFile('DATABASE_URL'),
  MIGRATION_DATABASE_URL: postgresUrl.optional().meta({
    description: 'The same database as the role that owns the schema, for `latchkey migrate`.',
    example: 'postgres://latchkey_owner:…@db:5432/latchkey',
  }),
  MIGRATION_DATABASE_URL_FILE: secretFile('MIGRATION_DATABASE_URL'),
  APP_ROLE: z
    .string()
    .regex(/^[a-z_][a-z0-9_]{0,62}$/, 'must be a role name of a-z, 0-9 and _')
    .default('latchkey_app')
    .meta({
      description: "The service's role, to which `latchkey migrate` gives its rights.",
      example: 'latchkey_app',
    }),
  MIGRATE_ON_START: boolean.default(false).meta({
    description: 'Migrate before the service starts; the embedded database is always migrated.',
    example: 'true',
  }),
  LISTEN_DATABASE_URL: postgresUrl.optional().meta({
    description: 'A direct way to the same database, where DATABASE_URL leads through a transaction pooler.',
    example: 'postgres://latchkey_app:…@db:5432/latchkey',
  }),
  PGSSLMODE: z
    .enum(tlsModes, `must be one of ${tlsModes.join(', ')}`)
    .optional()
    .meta({
      description: 'Whether Postgres is reached by TLS, for URLs without `sslmode` (docs/operations.md).',
      example: 'verify-full',
    }),
  PGSSLROOTCERT: z.string().optional().meta({
    description: 'A file with the certificate authority of Postgres, for URLs without `sslrootcert`.',
    example: '/etc/latchkey/postgres-ca.crt',
  }),
  LISTEN_DATABASE_URL_FILE: secretFile('LISTEN_DATABASE_URL'),
  DATABASE_POOL_SIZE: integer(1, 500).default(10).meta({
    description: 'Connections to Postgres at most.',
    example: '20',
  }),
  DATABASE_TIMEOUT_MS: integer(100, 600_000).default(1_500).meta({
    description: 'Past this a query, or the wait for a connection, is answered 503.',
    example: '1500',
  }),
  DATABASE_QUEUE_LIMIT: integer(1, 100_000).default(200).meta({
    description: 'Requests that may wait for a connection to Postgres at once; further ones are rejected with 503.',
    example: '400',
  }),
  EVENT_LOOP_DELAY_LIMIT_MS: integer(20, 60_000).default(500).meta({
    description:
      'If the average event-loop delay exceeds this value, requests are rejected with 503 (verification at four times this value).',
    example: '1000',
  }),
  LATCHKEY_DATA_DIR: z.string().optional().meta({
    description:
      'Where the embedded database, its keyring and credentials.json lie. Not set: .latchkey in the working folder, or for root below /var/lib/latchkey.',
    example: '/srv/latchkey',
  }),
  LATCHKEY_KEYRING: z.string().optional().meta({
    description: 'The server secrets, `id:base64,id:base64…`, 32 bytes each; the first one is primary.',
    example: 'k20260101:$(openssl rand -base64 32)',
  }),
  LATCHKEY_KEYRING_FILE: secretFile('LATCHKEY_KEYRING'),
  LOST_KEYRING_IDS: z
    .string()
    .transform((text) => text.split(',').map((id) => id.trim()))
    .optional()
    .meta({
      description:
        'Ids of keyring entries that are lost for good, with commas. Credentials under them are checked by argon2id once, and their rows cannot be authenticated. Remove an id when `latchkey doctor` no longer names it.',
      example: 'k20250101',
    }),
  LATCHKEY_STRICT: boolean.default(false).meta({
    description: 'Refuse to start where the database does not protect history, instead of warning.',
    example: 'true',
  }),
  TOKEN_PREFIX: z
    .string()
    .regex(/^[a-z][a-z0-9]{1,9}$/, 'must be 2 to 10 characters of a-z and 0-9, beginning with a letter')
    .default('lk')
    .meta({ description: "What every token begins with; fixed by the installation's first start.", example: 'acme' }),
  LOG_LEVEL: z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']).default('info').meta({
    description: 'The least that is logged.',
    example: 'debug',
  }),
  LOG_FORMAT: z.enum(['json', 'pretty']).optional().meta({
    description: 'Not set: readable on a terminal, JSON lines elsewhere.',
    example: 'json',
  }),
  TRUST_PROXY: networks.optional().meta({
    description: 'Proxies whose X-Forwarded-For is believed; with commas. Not set: nobody’s.',
    example: '10.0.0.0/8,127.0.0.1',
  }),
  CALLER_LIMIT: integer(1, 1_000_000_000).default(3_000).meta({
    description: 'Requests a minute of one caller on the management endpoints.',
    example: '3000',
  }),
  ADDRESS_LIMIT: integer(1, 1_000_000_000).default(60).meta({
    description: 'Refused access tokens a minute from one address.',
    example: '60',
  }),
  PUBLIC_LIMIT: integer(1, 1_000_000_000).default(600).meta({
    description:
      'Requests a minute from one address to each route without a credential, such as `/docs`; `/livez` and `/readyz` are not counted.',
    example: '600',
  }),
  MAX_CONNECTIONS: integer(1, 1_000_000).default(10_000).meta({
    description: 'Connections at once, at most what the descriptor limit (`ulimit -n`) leaves room for.',
    example: '10000',
  }),
  REVEAL_LIMIT: integer(1, 1_000_000_000).default(10).meta({
    description: 'Reveals a minute of one admin, together with all tokens that it has created.',
    example: '10',
  }),
  VERIFY_STALE_SECONDS: integer(0, 86_400).default(30).meta({
    description: 'How long known keys go on working while Postgres does not answer; 0: not at all.',
    example: '30',
  }),
  VERIFY_CACHE_SIZE: integer(100, 10_000_000).default(200_000).meta({
    description: 'Keys kept in memory at most, about 1.3 KB each.',
    example: '200000',
  }),
  CHANGE_STREAMS: integer(0, 100_000).default(1_000).meta({
    description:
      'Backends at once that follow changes by `/v1/changes`; one organization may have half of what the others leave.',
    example: '1000',
  }),
  REDIS_URL: redisUrl.optional().meta({
    description:
      'A Redis or Valkey in which replicas count rate limits together, also by TLS (`rediss://`) or a cluster (`redis+cluster://host:6379,host:6379`). Not set: each counts by itself.',
    example: 'redis://cache:6379',
  }),
  REDIS_URL_FILE: secretFile('REDIS_URL'),
  USAGE_HOURLY_DAYS: integer(1, 3_650).default(35).meta({
    description: 'Days for which usage is kept by the hour; older hours are folded into days.',
    example: '35',
  }),
  UNDO_WINDOW_SECONDS: integer(0, 31_536_000).default(86_400).meta({
    description: 'How long an admin can undo a deletion.',
    example: '86400',
  }),
  RETENTION_SECONDS: integer(0, 315_360_000).default(2_592_000).meta({
    description: 'How long an operator can bring back what was deleted; then it is purged for good.',
    example: '2592000',
  }),
  ...oidcEnvironment,
  WEBHOOK_ALLOW_HTTP: boolean.default(false).meta({
    description: 'Let webhooks lead to http:// as well as https://.',
    example: 'true',
  }),
  WEBHOOK_ALLOW_CIDRS: networks.optional().meta({
    description: 'Networks that webhooks may lead to although they are not public; with commas. Not set: none.',
    example: '10.20.0.0/16,fd00::/8',
  }),
  CHECKPOINT_FILE: z.string().optional().meta({
    description:
      'Where signed checkpoints of the history are appended, and remembered beyond a restart. Not set: only in memory and in the log.',
    example: '/var/lib/latchkey/checkpoints',
  }),
  CHECKPOINT_URL: httpUrl.optional().meta({
    description: 'Where signed checkpoints are sent to by POST, so that they leave the machine. Not set: nowhere.',
    example: 'https://user:password@archive.example.com/latchkey',
  }),
  CHECKPOINT_URL_FILE: secretFile('CHECKPOINT_URL'),
  ARGON2_MEMORY_KIB: integer(8, 65_536).default(19_456).meta({
    description: 'Memory of one argon2id run.',
    example: '19456',
  }),
  ARGON2_TIME_COST: integer(1, 10).default(2).meta({ description: 'Passes of argon2id.', example: '2' }),
  ARGON2_PARALLELISM: integer(1, 4).default(1).meta({ description: 'Lanes of argon2id.', example: '1' }),
  ARGON2_CONCURRENCY: integer(1, 64).default(2).meta({ description: 'argon2id runs at once.', example: '2' }),
  ARGON2_QUEUE_LIMIT: integer(0, 10_000).default(100).meta({
    description: 'argon2id runs that may wait at once; further ones are rejected with 503.',
    example: '100',
  }),
});

export type Config = Readonly<Omit<z.infer<typeof environment>, 'LATCHKEY_KEYRING' | SecretFileName>> & {
  /** Undefined where none is configured: the embedded start makes one. */
  readonly keyring: Keyring | undefined;
  /** Undefined: no admins come from an identity provider. */
  readonly oidc: OidcSettings | undefined;
};

/** Everything that is wrong with the environment, one line each, with the variable's name and an example. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(`The configuration cannot work:\n${problems.map((problem) => `  ${problem}`).join('\n')}`);
    this.problems = problems;
  }
}

/**
 * The one reader of the environment.
 * @param needs `keyring`: what only a process that makes or checks tokens needs; with the embedded database it is optional.
 * `database`: an embedded one will not do
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
        '`latchkey serve` starts no database; `latchkey try` starts one of its own, to try Latchkey with.',
    );
  } else if (given['MIGRATION_DATABASE_URL'] !== undefined && mayBeEmbedded && needs.keyring) {
    problems.push(
      'MIGRATION_DATABASE_URL is set without DATABASE_URL, and the service would start an embedded database: set both or neither.',
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
    problems.push('METRICS_PORT must be another port than PORT; not set, /metrics is on PORT.');
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
  // As a URL that only this variable has a say in.
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

/** The value itself is not repeated: it may be a password. */
function describeIssue(issue: z.core.$ZodIssue, { sourceOf }: SecretsRead): string {
  const name = String(issue.path[0]);
  const source = sourceOf(name);
  if (source !== name) return `${source}: the text of the file ${issue.message}.`;
  return `${name} ${issue.message}, for example ${name}=${exampleOf(name)}`;
}

/** The example that the schema gives for a variable. */
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
