import { readFile } from 'node:fs/promises';
import path from 'node:path';
import type { Config } from '../config/config.ts';
import { type Keyring, parseKeyring } from '../crypto/keyring.ts';
import { defaultDataDirectory } from '../embedded-postgres/start.ts';
import type { Credentials } from '../service/embedded-instance.ts';

/**
 * The service role's database URL and the keyring. Without DATABASE_URL: those of this folder's embedded instance,
 * which must be running.
 */
export async function locate(config: Config): Promise<{ url: string; keyring: Keyring }> {
  if (config.DATABASE_URL !== undefined && config.keyring !== undefined) {
    return { url: config.DATABASE_URL, keyring: config.keyring };
  }
  const file = path.join(
    path.resolve(config.LATCHKEY_DATA_DIR ?? defaultDataDirectory(process.cwd())),
    'credentials.json',
  );
  try {
    const { databaseUrl, keyringFile } = JSON.parse(await readFile(file, 'utf8')) as Credentials;
    return {
      url: databaseUrl,
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
