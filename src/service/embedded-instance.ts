import { readFile, rename } from 'node:fs/promises';
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
import { unfinishedName } from '../embedded-postgres/unfinished.ts';
import { createKeyMint } from '../keys/mint.ts';
import { exists, writeDurably } from '../lib/durable-file.ts';
import { hasOrganization } from '../organizations/store.ts';
import { type BootstrapDeps, type Bootstrapped, bootstrap } from './bootstrap.ts';

/** The content of `credentials.json`: what a person or a script needs to use an embedded instance. */
export interface Credentials {
  /** The URL on which the service listens. */
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
  /** Stores tokens before the transaction that creates them commits. `confirmCredentials` makes them the valid ones. */
  prepareCredentials(bootstrapped: Bootstrapped): Promise<void>;
  /**
   * Called after the commit and at every start: writes `credentials.json` with the prepared tokens and the current
   * URLs.
   * @param url the URL on which the service listens, as soon as it does
   * @returns undefined if somebody has moved the file away
   */
  confirmCredentials(url?: string): Promise<Credentials | undefined>;
}

/**
 * Starts the embedded Postgres, and reads or creates the keyring beside it.
 * @throws EmbeddedPostgresError
 */
export async function startEmbeddedInstance(config: Config, logger: Logger): Promise<EmbeddedInstance> {
  const given = config.LATCHKEY_DATA_DIR;
  const postgres = await startEmbeddedPostgres({
    dataDirectory: path.resolve(given ?? defaultDataDirectory(process.cwd())),
    copiesDirectory: path.resolve(given ?? rootsDirectory, 'programs'),
    port: embeddedPort,
    onRestart: ({ error }) => {
      if (error === undefined) logger.warn('The embedded Postgres had stopped. It was started again.');
      else logger.fatal({ err: error }, 'The embedded Postgres has stopped and cannot be started again.');
    },
  });
  if (postgres.port !== embeddedPort) {
    logger.info(`Port ${embeddedPort} is taken, so the embedded Postgres listens on 127.0.0.1:${postgres.port}.`);
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
      // If somebody moved the file away on purpose, do not create it again.
      if (!(await exists(credentialsFile))) return undefined;
      const kept = JSON.parse(await readFile(credentialsFile, 'utf8')) as Credentials;
      const credentials: Credentials = { ...kept, ...urls, url: url ?? kept.url };
      await writeWhole(credentialsFile, toText(credentials));
      return credentials;
    },
  };
}

/** Bootstraps an embedded instance at its first start, and completes its credentials file at every start. */
export async function bootstrapEmbedded(embedded: EmbeddedInstance, deps: BootstrapDeps): Promise<void> {
  if (!(await hasOrganization(deps.transactor.db))) {
    await bootstrap(deps, {
      organizationName: 'My organization',
      adminEmail: 'admin@example.com',
      keyMint: createKeyMint(deps.crypto),
      beforeCommit: (made) => embedded.prepareCredentials(made),
    });
  }
  await embedded.confirmCredentials();
}

async function openKeyring(file: string, lostIds: readonly string[] | undefined): Promise<Keyring> {
  if (!(await exists(file))) await writeWhole(file, `${generateKeyring(new Date())}\n`);
  return parseKeyring(await readFile(file, 'utf8'), lostIds);
}

function toText(credentials: object): string {
  return `${JSON.stringify(credentials, null, 2)}\n`;
}

async function writeWhole(file: string, text: string): Promise<void> {
  await writeDurably(file, unfinishedName(file), (handle) => handle.writeFile(text));
}
