import { z } from 'zod';
import { tlsModes } from '../../database/tls-url.ts';
import { boolean, integer, postgresUrl } from '../../lib/config-forms.ts';
import { secretFile } from '../secret-files.ts';

/** Connections to Postgres and migrations. */
export const databaseSettings = {
  DATABASE_URL: postgresUrl.optional().meta({
    description:
      "Your own Postgres (15 to 18), with the service's role. Not set: `npm start` and `latchkey try` start an embedded database; `latchkey serve` does not start.",
    example: 'postgres://latchkey_app:…@db:5432/latchkey',
  }),
  DATABASE_URL_FILE: secretFile('DATABASE_URL'),
  MIGRATION_DATABASE_URL: postgresUrl.optional().meta({
    description: 'The same database with the role that owns the schema, for `latchkey migrate`.',
    example: 'postgres://latchkey_owner:…@db:5432/latchkey',
  }),
  MIGRATION_DATABASE_URL_FILE: secretFile('MIGRATION_DATABASE_URL'),
  LISTEN_DATABASE_URL: postgresUrl.optional().meta({
    description:
      'The same database without a transaction pooler: directly, or through a pooler by session (docs/scaling.md). Needed if DATABASE_URL leads to a transaction pooler.',
    example: 'postgres://latchkey_app:…@db:5432/latchkey',
  }),
  LISTEN_DATABASE_URL_FILE: secretFile('LISTEN_DATABASE_URL'),
  APP_ROLE: z
    .string()
    .regex(/^[a-z_][a-z0-9_]{0,62}$/, 'must be a role name of a-z, 0-9 and _')
    .default('latchkey_app')
    .meta({
      description: "The service's role. `latchkey migrate` grants it its privileges.",
      example: 'latchkey_app',
    }),
  MIGRATE_ON_START: boolean.default(false).meta({
    description: 'Migrate the database before the service starts. The embedded database is always migrated.',
    example: 'true',
  }),
  PGSSLMODE: z
    .enum(tlsModes, `must be one of ${tlsModes.join(', ')}`)
    .optional()
    .meta({
      description: 'The TLS mode for database URLs without `sslmode` (docs/operations.md).',
      example: 'verify-full',
    }),
  PGSSLROOTCERT: z.string().optional().meta({
    description: 'A file with the certificate authority of Postgres, for database URLs without `sslrootcert`.',
    example: '/etc/latchkey/postgres-ca.crt',
  }),
  DATABASE_POOL_SIZE: integer(1, 500).default(10).meta({
    description: 'The maximum number of connections to Postgres.',
    example: '20',
  }),
  DATABASE_TIMEOUT_MS: integer(100, 600_000).default(1_500).meta({
    description: 'If a query or the wait for a connection takes longer, the request is rejected with 503.',
    example: '1500',
  }),
  DATABASE_QUEUE_LIMIT: integer(1, 100_000).default(200).meta({
    description:
      'The maximum number of requests that wait for a connection to Postgres. Further requests are rejected with 503.',
    example: '400',
  }),
};
