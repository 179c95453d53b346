import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { Command } from 'commander';
import { type Config, readConfig } from '../config.ts';
import { type Keyring, parseKeyring } from '../crypto/keyring.ts';
import { connect, type Db } from '../db/client.ts';
import { defaultDataDirectory } from '../db/embedded/start.ts';
import { checkGuarantees } from '../db/guarantees.ts';
import { confirmInstallation, unknownKeyringIds } from '../db/installation.ts';
import { requireCurrentSchema } from '../db/migrator.ts';
import { isUnavailable } from '../db/pg-error.ts';
import type { Credentials } from '../embedded-instance.ts';
import { print } from './print.ts';

export function doctorCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('doctor')
    .description('look at configuration, database and keyring, and say what is wrong; exit code 1 where something is')
    .action(async () => {
      const config = readConfig(env);
      print('ok      The configuration can be read.');
      const { url, keyring } = await locate(config);
      const client = connect({ url, poolSize: 2, timeoutMs: config.DATABASE_TIMEOUT_MS });
      try {
        await examine(client.db, config, keyring);
      } catch (error) {
        const unreachable = isUnavailable(error) ? 'The database can not be reached: ' : '';
        wrong(`${unreachable}${error instanceof Error ? error.message : String(error)}`);
      } finally {
        await client.close();
      }
    });
}

/** Each line is a check; the first that makes the others pointless ends the examination by throwing. */
async function examine(db: Db, config: Config, keyring: Keyring): Promise<void> {
  await requireCurrentSchema(db);
  print('ok      The database can be reached, and its schema is current.');
  await confirmInstallation(db, { tokenPrefix: config.TOKEN_PREFIX, keyring });
  print('ok      Prefix and keyring are those of this installation.');
  const unknown = await unknownKeyringIds(db, keyring);
  if (unknown.length === 0) print('ok      The keyring has every entry that keys were sealed under.');
  else wrong(`Keys were sealed under ${unknown.join(', ')}, which the keyring lacks: they can not be revealed.`);
  for (const { name, kept, remedy } of await checkGuarantees(db)) {
    if (kept) print(`ok      ${name}.`);
    else wrong(`Not so: ${name}. ${remedy}`);
  }
}

function wrong(what: string): void {
  print(`wrong   ${what}`);
  process.exitCode = 1;
}

/** Without DATABASE_URL: the embedded instance of this folder, which must be running. */
async function locate(config: Config): Promise<{ url: string; keyring: Keyring }> {
  if (config.DATABASE_URL !== undefined && config.keyring !== undefined) {
    return { url: config.DATABASE_URL, keyring: config.keyring };
  }
  const file = path.join(
    path.resolve(config.LATCHKEY_DATA_DIR ?? defaultDataDirectory(process.cwd())),
    'credentials.json',
  );
  try {
    const { databaseUrl, keyringFile } = JSON.parse(await readFile(file, 'utf8')) as Credentials;
    return { url: databaseUrl, keyring: config.keyring ?? parseKeyring(await readFile(keyringFile, 'utf8')) };
  } catch (cause) {
    throw new Error(
      `DATABASE_URL is not set, and ${file} of an embedded instance can not be read. Start the service first, or set ` +
        'DATABASE_URL or LATCHKEY_DATA_DIR.',
      { cause },
    );
  }
}
