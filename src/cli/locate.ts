import { readFile } from 'node:fs/promises';
import path from 'node:path';
import type { Config } from '../config/config.ts';
import { type Keyring, parseKeyring } from '../crypto/keyring.ts';
import { defaultDataDirectory } from '../embedded-postgres/start.ts';
import type { Credentials } from '../service/embedded-instance.ts';

/**
 * The database URLs of the service's role and of the owner, and the keyring. Without DATABASE_URL: those of this folder's
 * embedded instance, which must be running.
 */
export async function locate(config: Config): Promise<{ url: string; ownerUrl: string; keyring: Keyring }> {
  if (config.DATABASE_URL !== undefined && config.keyring !== undefined) {
    const { DATABASE_URL: url, MIGRATION_DATABASE_URL: ownerUrl = url, keyring } = config;
    return { url, ownerUrl, keyring };
  }
  const file = path.join(
    path.resolve(config.LATCHKEY_DATA_DIR ?? defaultDataDirectory(process.cwd())),
    'credentials.json',
  );
  try {
    const { databaseUrl, migrationDatabaseUrl, keyringFile } = JSON.parse(await readFile(file, 'utf8')) as Credentials;
    return {
      url: databaseUrl,
      ownerUrl: migrationDatabaseUrl,
      keyring: config.keyring ?? parseKeyring(await readFile(keyringFile, 'utf8'), config.LOST_KEYRING_IDS),
    };
  } catch (cause) {
    throw new Error(
      `DATABASE_URL is not set, and ${file} of the embedded instance cannot be read. Start the service first, or set ` +
        'DATABASE_URL or LATCHKEY_DATA_DIR.',
      { cause },
    );
  }
}
