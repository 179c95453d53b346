import type { Config } from '../config/config.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { connect } from '../database/client.ts';
import { createDatabaseClock } from '../database/clock.ts';
import { confirmInstallation } from '../database/installation.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import type { Transactor } from '../database/work.ts';
import { enqueueDeliveries } from '../webhooks/enqueue-deliveries.ts';

const connectTimeoutMs = 10_000;

interface Access {
  url: string;
  keyring: Keyring;
  /** Default: unlimited, also for the connection. */
  queryTimeoutMs?: number;
}

/**
 * Runs a command that changes the database, after checking that schema and keyring belong together. Then disconnects.
 * @throws SchemaMismatch, InstallationMismatch
 */
export async function withInstallation(
  config: Pick<Config, 'TOKEN_PREFIX'>,
  { url, keyring, queryTimeoutMs }: Access,
  act: (transactor: Transactor) => Promise<void>,
): Promise<void> {
  const limits = queryTimeoutMs === undefined ? {} : { timeoutMs: queryTimeoutMs, connectTimeoutMs };
  const { db, close } = connect({ url, poolSize: 2, ...limits });
  try {
    await requireCurrentSchema(db);
    await confirmInstallation(db, { tokenPrefix: config.TOKEN_PREFIX, keyring });
    await act({ db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries });
  } finally {
    await close();
  }
}
