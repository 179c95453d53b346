import { z } from 'zod';
import { environment } from '../src/config/config.ts';

type Setting = keyof typeof environment.shape;

interface Concern {
  title: string;
  /** One sentence before the table, where a reader needs one. */
  about?: string;
  settings: readonly Setting[];
}

/** The settings in the order of the page. Every setting belongs to exactly one concern. */
const concerns: readonly Concern[] = [
  {
    title: 'Service and HTTP',
    settings: [
      'HOST',
      'PORT',
      'METRICS_PORT',
      'TRUST_PROXY',
      'DRAIN_SECONDS',
      'LOG_LEVEL',
      'LOG_FORMAT',
      'OTEL_EXPORTER_OTLP_ENDPOINT',
      'OTEL_SERVICE_NAME',
      'TOKEN_PREFIX',
      'LATCHKEY_DATA_DIR',
      'LATCHKEY_STRICT',
    ],
  },
  {
    title: 'Database',
    about: '[operations.md](operations.md#postgres-by-tls) explains TLS.',
    settings: [
      'DATABASE_URL',
      'MIGRATION_DATABASE_URL',
      'LISTEN_DATABASE_URL',
      'APP_ROLE',
      'MIGRATE_ON_START',
      'PGSSLMODE',
      'PGSSLROOTCERT',
      'DATABASE_POOL_SIZE',
      'DATABASE_TIMEOUT_MS',
      'DATABASE_QUEUE_LIMIT',
    ],
  },
  {
    title: 'Secrets',
    about:
      'Each `…_FILE` names a file that holds the value. Set the variable or its file, not both. [keyring.md](keyring.md) explains the keyring.',
    settings: [
      'LATCHKEY_KEYRING',
      'LATCHKEY_KEYRING_FILE',
      'LOST_KEYRING_IDS',
      'DATABASE_URL_FILE',
      'MIGRATION_DATABASE_URL_FILE',
      'LISTEN_DATABASE_URL_FILE',
      'REDIS_URL_FILE',
      'CHECKPOINT_URL_FILE',
    ],
  },
  {
    title: 'Limits of the service',
    about: '[operations.md](operations.md#bounds) lists all bounds, also those without a setting.',
    settings: [
      'CALLER_LIMIT',
      'ADDRESS_LIMIT',
      'PUBLIC_LIMIT',
      'REVEAL_LIMIT',
      'MAX_CONNECTIONS',
      'EVENT_LOOP_DELAY_LIMIT_MS',
    ],
  },
  {
    title: 'Verification',
    settings: ['VERIFY_STALE_SECONDS', 'VERIFY_CACHE_SIZE', 'CHANGE_STREAMS', 'REDIS_URL'],
  },
  {
    title: 'History, usage and deletion',
    about: '[history.md](history.md) explains checkpoints.',
    settings: ['UNDO_WINDOW_SECONDS', 'RETENTION_SECONDS', 'USAGE_HOURLY_DAYS', 'CHECKPOINT_FILE', 'CHECKPOINT_URL'],
  },
  {
    title: 'Webhooks',
    settings: ['WEBHOOK_ALLOW_HTTP', 'WEBHOOK_ALLOW_CIDRS'],
  },
  {
    title: 'Identity provider',
    about: '[oidc.md](oidc.md) has the settings for common providers.',
    settings: [
      'OIDC_ISSUER',
      'OIDC_AUDIENCE',
      'OIDC_AUDIENCE_CLAIM',
      'OIDC_ORGANIZATION',
      'OIDC_ORGANIZATION_CLAIM',
      'OIDC_ORGANIZATIONS',
      'OIDC_ROLES_CLAIM',
      'OIDC_READ_ROLES',
      'OIDC_WRITE_ROLES',
      'OIDC_NAME_CLAIM',
      'OIDC_EMAIL_CLAIM',
      'OIDC_UNTYPED_TOKENS',
      'OIDC_NBF_REQUIRED',
      'OIDC_MAX_LIFETIME_SECONDS',
    ],
  },
  {
    title: 'argon2id',
    settings: [
      'ARGON2_MEMORY_KIB',
      'ARGON2_TIME_COST',
      'ARGON2_PARALLELISM',
      'ARGON2_CONCURRENCY',
      'ARGON2_QUEUE_LIMIT',
    ],
  },
];

const introduction = `# Configuration

<!-- Written by \`npm run docs\` from the schema in src/config/config.ts and the groups in tools/configuration.ts. -->

Latchkey is configured by environment variables. An empty variable counts as not set. At the start all problems are listed at
once, and the exit code is then 78.
`;

/** The text of docs/configuration.md. @throws Error where a setting belongs to no concern, or to two */
export function configurationPage(): string {
  requireEachSettingOnce();
  return [introduction, ...concerns.map(sectionOf)].join('\n');
}

function requireEachSettingOnce(): void {
  const grouped = concerns.flatMap(({ settings }) => settings);
  const wrong = Object.keys(environment.shape).filter(
    (name) => grouped.filter((setting) => setting === name).length !== 1,
  );
  if (wrong.length > 0) throw new Error(`Each of these needs one group in tools/configuration.ts: ${wrong.join(', ')}`);
}

function sectionOf({ title, about, settings }: Concern): string {
  const head = ['| variable | default | meaning |', '| --- | --- | --- |'];
  return [`## ${title}`, '', ...(about === undefined ? [] : [about, '']), ...head, ...settings.map(rowOf), ''].join(
    '\n',
  );
}

function rowOf(name: Setting): string {
  const schema = environment.shape[name];
  const { description } = z.globalRegistry.get(schema) ?? {};
  const fallback = schema.safeParse(undefined).data;
  return `| \`${name}\` | ${fallback === undefined ? '' : `\`${String(fallback)}\``} | ${String(description)} |`;
}
