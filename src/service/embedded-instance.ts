import { randomBytes } from 'node:crypto';
import { access, open, readFile, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import type { Logger } from 'pino';
import type { Config } from '../config/config.ts';
import { generateKeyring, type Keyring, parseKeyring } from '../crypto/keyring.ts';
import { isRoot } from '../embedded-postgres/account.ts';
import {
  defaultDataDirectory,
  type EmbeddedPostgres,
  embeddedPort,
  linkRootsData,
  rootsDirectory,
  startEmbeddedPostgres,
} from '../embedded-postgres/start.ts';
import type { Bootstrapped } from './bootstrap.ts';

/** What a person or a script needs to use an embedded instance: the content of `credentials.json`. */
export interface Credentials {
  /** Where the service listens. */
  url: string;
  organizationId: string;
  adminToken: string;
  verifierToken: string;
  operatorToken: string;
  /** The organization's first key. */
  key: string;
  databaseUrl: string;
  migrationDatabaseUrl: string;
  keyringFile: string;
}

export interface EmbeddedInstance {
  postgres: EmbeddedPostgres;
  keyring: Keyring;
  credentialsFile: string;
  /** Keeps tokens that are about to be made; they count once `confirmCredentials` has been called. */
  prepareCredentials(bootstrapped: Bootstrapped): Promise<void>;
  /**
   * After the commit, and at every start: what was prepared becomes `credentials.json`, with the URLs of now.
   * @param url where the service listens, once it does
   * @returns undefined where somebody has moved the file away
   */
  confirmCredentials(url?: string): Promise<Credentials | undefined>;
}

/**
 * Starts the embedded Postgres, and finds or makes the keyring beside it.
 * @throws EmbeddedPostgresError
 */
export async function startEmbeddedInstance(config: Config, logger: Logger): Promise<EmbeddedInstance> {
  const given = config.LATCHKEY_DATA_DIR;
  const postgres = await startEmbeddedPostgres({
    dataDirectory: path.resolve(given ?? defaultDataDirectory(process.cwd())),
    copiesDirectory: path.resolve(given ?? rootsDirectory, 'programs'),
    port: embeddedPort,
    onRestart: ({ error }) => {
      if (error === undefined) logger.warn('The embedded Postgres was gone and has been started again.');
      else logger.fatal({ err: error }, 'The embedded Postgres is gone and does not start again.');
    },
  });
  if (postgres.port !== embeddedPort) {
    logger.info(`Port ${embeddedPort} is taken; the embedded Postgres listens on 127.0.0.1:${postgres.port}.`);
  }
  const { dataDirectory } = postgres;
  if (given === undefined && isRoot()) await linkRootsData(process.cwd(), dataDirectory);
  const keyringFile = path.join(dataDirectory, 'keyring');
  const credentialsFile = path.join(dataDirectory, 'credentials.json');
  const preparedFile = path.join(dataDirectory, 'credentials.prepared.json');
  const urls = { databaseUrl: postgres.urls.app, migrationDatabaseUrl: postgres.urls.owner, keyringFile };
  return {
    postgres,
    keyring: config.keyring ?? (await openKeyring(keyringFile, config.LOST_KEYRING_IDS)),
    credentialsFile,
    async prepareCredentials({ organizationId, adminToken, verifierToken, operatorToken, key }) {
      const credentials: Partial<Credentials> = {
        organizationId,
        adminToken: adminToken.reveal(),
        verifierToken: verifierToken.reveal(),
        operatorToken: operatorToken.reveal(),
        ...(key && { key: key.reveal() }),
        ...urls,
      };
      await writeWhole(preparedFile, toText(credentials));
    },
    async confirmCredentials(url) {
      if (await exists(preparedFile)) await rename(preparedFile, credentialsFile);
      // Who has moved the file away knows why: it is not made again.
      if (!(await exists(credentialsFile))) return undefined;
      const kept = JSON.parse(await readFile(credentialsFile, 'utf8')) as Credentials;
      const credentials: Credentials = { ...kept, ...urls, url: url ?? kept.url };
      await writeWhole(credentialsFile, toText(credentials));
      return credentials;
    },
  };
}

async function openKeyring(file: string, lostIds: readonly string[] | undefined): Promise<Keyring> {
  if (!(await exists(file))) await writeWhole(file, `${generateKeyring(new Date())}\n`);
  return parseKeyring(await readFile(file, 'utf8'), lostIds);
}

function toText(credentials: object): string {
  return `${JSON.stringify(credentials, null, 2)}\n`;
}

async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}

/** All of it or nothing, on disk before this returns, readable by its owner only. */
async function writeWhole(file: string, text: string): Promise<void> {
  const unfinished = `${file}.unfinished-${randomBytes(6).toString('hex')}`;
  try {
    const handle = await open(unfinished, 'wx', 0o600);
    try {
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(unfinished, file);
  } catch (error) {
    await rm(unfinished, { force: true });
    throw error;
  }
}
