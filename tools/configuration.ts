import { z } from 'zod';
import { environment } from '../src/config/config.ts';
import { argon2Settings } from '../src/config/settings/argon2.ts';
import { databaseSettings } from '../src/config/settings/database.ts';
import { historySettings } from '../src/config/settings/history.ts';
import { keyringSettings } from '../src/config/settings/keyring.ts';
import { limitsSettings } from '../src/config/settings/limits.ts';
import { serviceSettings } from '../src/config/settings/service.ts';
import { verificationSettings } from '../src/config/settings/verification.ts';
import { webhooksSettings } from '../src/config/settings/webhooks.ts';
import { oidcEnvironment } from '../src/oidc/settings.ts';

interface Concern {
  title: string;
  /** One sentence before the table, if a reader needs one. */
  about?: string;
  settings: Record<string, z.ZodType>;
}

/** The sections of the page, in their order. Every setting belongs to exactly one. */
const concerns: readonly Concern[] = [
  { title: 'Service and HTTP', settings: serviceSettings },
  {
    title: 'Database',
    about: '[operations.md](operations.md#postgres-by-tls) explains TLS.',
    settings: databaseSettings,
  },
  { title: 'Keyring', about: '[keyring.md](keyring.md) explains the keyring.', settings: keyringSettings },
  {
    title: 'Limits of the service',
    about: '[operations.md](operations.md#bounds) lists all bounds, also those without a setting.',
    settings: limitsSettings,
  },
  { title: 'Verification', settings: verificationSettings },
  {
    title: 'History, usage and deletion',
    about: '[history.md](history.md) explains checkpoints.',
    settings: historySettings,
  },
  { title: 'Webhooks', settings: webhooksSettings },
  {
    title: 'Identity provider',
    about: '[oidc.md](oidc.md) has the settings for common providers.',
    settings: oidcEnvironment,
  },
  { title: 'argon2id', settings: argon2Settings },
];

const introduction = `# Configuration

<!-- Written by \`npm run docs\` from src/config/settings and src/oidc/settings.ts. -->

Latchkey is configured by environment variables. An empty variable counts as not set. If the configuration has problems, the
service lists all of them, does not start, and exits with code 78.
`;

/** The text of docs/configuration.md. @throws Error if a setting is missing or stands in two sections */
export function configurationPage(): string {
  requireEachSettingOnce();
  return [introduction, ...concerns.map(sectionOf)].join('\n');
}

function requireEachSettingOnce(): void {
  const documented = concerns.flatMap(({ settings }) => Object.keys(settings)).sort();
  const all = Object.keys(environment.shape).sort();
  const missing = all.filter((name) => !documented.includes(name));
  if (missing.length > 0) throw new Error(`Add the settings of ${missing.join(', ')} to tools/configuration.ts`);
  if (documented.length !== all.length) throw new Error('A setting stands in two files of src/config/settings');
}

function sectionOf({ title, about, settings }: Concern): string {
  const head = ['| variable | default | meaning |', '| --- | --- | --- |'];
  return [
    `## ${title}`,
    '',
    ...(about === undefined ? [] : [about, '']),
    ...head,
    ...Object.entries(settings).map(rowOf),
    '',
  ].join('\n');
}

function rowOf([name, schema]: [string, z.ZodType]): string {
  const { description } = z.globalRegistry.get(schema) ?? {};
  const fallback = schema.safeParse(undefined).data;
  return `| \`${name}\` | ${fallback === undefined ? '' : `\`${String(fallback)}\``} | ${String(description)} |`;
}
