import { createHash, randomBytes } from 'node:crypto';
import { accessSync, constants, existsSync, readlinkSync, realpathSync } from 'node:fs';
import { lstat, rm, symlink } from 'node:fs/promises';
import path from 'node:path';
import { chooseAccount, isRoot, prepareDataDirectory } from './account.ts';
import { type EmbeddedPasswords, embeddedDatabase, embeddedRoles, openCluster } from './cluster.ts';
import { type Postmaster, type PostmasterOptions, startPostmaster } from './postmaster.ts';
import { findPrograms } from './programs.ts';
import { removeUnfinished } from './unfinished.ts';

export interface EmbeddedOptions {
  /** The folder of this instance; see `defaultDataDirectory`. */
  dataDirectory: string;
  /** The folder for copies of the programs, if they are needed. All instances can share it. */
  copiesDirectory: string;
  /** The preferred port. If it is not free, another one is used. */
  port: number;
  /** False: nothing is synced to disk and more connections are allowed. For tests only. */
  durable?: boolean;
  /** Called when Postgres had stopped and was started again, or could not be. */
  onRestart?: (outcome: { error?: unknown }) => void;
}

export interface EmbeddedPostgres {
  port: number;
  pid(): number;
  /** The real path of the data folder. */
  dataDirectory: string;
  /** The service's role, the owner of the schema, and the owner of the cluster. */
  urls: Record<keyof typeof embeddedRoles, string>;
  stop(): Promise<void>;
}

export const embeddedPort = 54_329;

const everyRun = { cluster_name: 'latchkey', max_connections: '100' };
const forTests = { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off', max_connections: '400' };

/**
 * Root's data is stored where the account of Postgres can reach it, and `.latchkey` in the working folder links to it.
 * Data of an earlier folder with the same path has lost its link, so it is not used.
 */
export function defaultDataDirectory(workingDirectory: string): string {
  const own = path.join(workingDirectory, '.latchkey');
  if (!isRoot()) return own;
  const linked = readLink(own);
  if (linked !== undefined && path.dirname(linked) === rootsDirectory) return linked;
  const hash = createHash('sha256').update(realpathSync(workingDirectory)).digest('hex').slice(0, 12);
  const byPath = path.join(rootsDirectory, hash);
  // Without a link, such as in a read-only folder, only the path identifies the data.
  if (!existsSync(byPath) || existsSync(own) || !isWritable(workingDirectory)) return byPath;
  return `${byPath}-${randomBytes(4).toString('hex')}`;
}

function readLink(file: string): string | undefined {
  try {
    return readlinkSync(file);
  } catch {
    return undefined;
  }
}

function isWritable(directory: string): boolean {
  try {
    accessSync(directory, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/**
 * Links `.latchkey` in root's working folder to its data, so that one path is right for every user. An existing file
 * stays, and a read-only folder gets no link.
 */
export async function linkRootsData(workingDirectory: string, dataDirectory: string): Promise<void> {
  const link = path.join(workingDirectory, '.latchkey');
  try {
    if ((await lstat(link).catch(() => undefined))?.isSymbolicLink()) await rm(link);
    await symlink(dataDirectory, link);
  } catch {
    // The start also prints the real path.
  }
}

export const rootsDirectory = '/var/lib/latchkey';

/**
 * Starts a real Postgres from npm packages, only on 127.0.0.1, with passwords that only its data folder contains. It
 * ends with this process, and is started again if it stops before. @throws EmbeddedPostgresError
 */
export async function startEmbeddedPostgres(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const { durable = true } = options;
  const account = await chooseAccount(path.join(options.dataDirectory, 'postgres'));
  const dataDirectory = await prepareDataDirectory(options.dataDirectory, account);
  await removeUnfinished(dataDirectory);
  await removeUnfinished(options.copiesDirectory);
  const programs = await findPrograms(options.copiesDirectory, account);
  const cluster = path.join(dataDirectory, 'postgres');
  const passwords = await openCluster({ cluster, programs, account, durable });
  const postmasterOptions: PostmasterOptions = {
    cluster,
    programs,
    account,
    logFile: path.join(dataDirectory, 'postgres.log'),
    port: options.port,
    settings: durable ? everyRun : { ...everyRun, ...forTests },
  };
  const kept = keepRunning(await startPostmaster(postmasterOptions), postmasterOptions, options.onRestart);
  return { ...kept, dataDirectory, urls: urlsOf(passwords, kept.port) };
}

function urlsOf(passwords: EmbeddedPasswords, port: number): EmbeddedPostgres['urls'] {
  const url = (role: keyof typeof embeddedRoles) =>
    `postgres://${embeddedRoles[role]}:${passwords[role]}@127.0.0.1:${port}/${embeddedDatabase}`;
  return { superuser: url('superuser'), owner: url('owner'), app: url('app') };
}

/** Starts Postgres again on the same port whenever it ends without having been stopped. */
function keepRunning(
  first: Postmaster,
  options: PostmasterOptions,
  onRestart: EmbeddedOptions['onRestart'],
): Pick<EmbeddedPostgres, 'port' | 'pid' | 'stop'> {
  let current = first;
  let stopped = false;
  let restarting: Promise<void> = Promise.resolve();
  watch();
  return {
    port: first.port,
    pid: () => current.pid,
    async stop() {
      stopped = true;
      await restarting;
      await current.stop();
    },
  };

  function watch(): void {
    void current.ended.then(() => {
      if (!stopped) restarting = restart();
    });
  }

  async function restart(): Promise<void> {
    try {
      const again = await startPostmaster({ ...options, port: first.port });
      if (again.port !== first.port) {
        await again.stop();
        throw new Error(`port ${first.port} is no longer free`);
      }
      current = again;
      watch();
      onRestart?.({});
    } catch (error) {
      onRestart?.({ error });
    }
  }
}
