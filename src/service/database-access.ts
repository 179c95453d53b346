import type { Logger } from 'pino';
import type { Config } from '../config/config.ts';
import { connect, type DatabaseClient } from '../database/client.ts';
import { migrate } from '../database/migrator.ts';
import { embeddedRoles } from '../embedded-postgres/cluster.ts';
import type { EmbeddedInstance } from './embedded-instance.ts';

/** The database URLs of the service's role and of the schema's owner. */
export interface DatabaseAccess {
  appUrl: string;
  /** The same as `appUrl` if there is only one role. */
  ownerUrl: string;
  /** The role to which a migration grants its privileges. Undefined: there is only one role. */
  appRole: string | undefined;
}

/** @param embedded undefined: the database of the configuration, whose URLs are empty if it has none */
export function databaseAccess(config: Config, embedded?: EmbeddedInstance): DatabaseAccess {
  if (embedded !== undefined) {
    const { app, owner } = embedded.postgres.urls;
    return { appUrl: app, ownerUrl: owner, appRole: embeddedRoles.app };
  }
  const appUrl = config.DATABASE_URL ?? '';
  const ownerUrl = config.MIGRATION_DATABASE_URL ?? appUrl;
  return { appUrl, ownerUrl, appRole: ownerUrl === appUrl ? undefined : config.APP_ROLE };
}

export async function migrateAsOwner({ ownerUrl, appRole }: DatabaseAccess, logger: Logger): Promise<void> {
  const owner = connect({ url: ownerUrl, poolSize: 2 });
  try {
    const { applied, blocked } = await migrate(owner, { appRole, onDelay: (reason) => logger.info(reason) });
    if (applied.length > 0) logger.info({ applied }, 'The schema was migrated.');
    for (const { name, replicas } of blocked) {
      logger.info({ migration: name, replicas }, 'A migration waits until replicas of older versions have ended.');
    }
  } finally {
    await owner.close();
  }
}

/** The connection pool that serves requests. */
export function connectForService(url: string, config: Config, logger: Logger): DatabaseClient {
  return connect({
    url,
    poolSize: config.DATABASE_POOL_SIZE,
    timeoutMs: config.DATABASE_TIMEOUT_MS,
    queueLimit: config.DATABASE_QUEUE_LIMIT,
    onLost: (error) => logger.warn({ err: error }, 'A connection to Postgres was lost.'),
  });
}
