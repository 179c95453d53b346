import { access, chmod, constants, mkdir, readFile, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import { EmbeddedPostgresError } from './failure.ts';

/**
 * The account that runs the programs of Postgres if the service runs as root, because Postgres refuses to run as root.
 */
export interface Account {
  name: string;
  uid: number;
  gid: number;
}

/** The first existing one is used. An account of its own is best: other services may run as `nobody` too. */
const preferredNames = ['latchkey', 'postgres', '_postgres', 'nobody'];

export function isRoot(): boolean {
  return process.getuid?.() === 0;
}

/**
 * @returns undefined if this process does not run as root: then Postgres runs as the same user
 * @throws EmbeddedPostgresError `no_account`, `foreign_owner`
 */
export async function chooseAccount(cluster: string): Promise<Account | undefined> {
  const owner = await stat(cluster).catch(() => undefined);
  if (!isRoot()) {
    if (owner !== undefined && owner.uid !== process.getuid?.()) {
      throw new EmbeddedPostgresError(
        'foreign_owner',
        `The database in ${cluster} belongs to user id ${owner.uid}, not to the user who starts Latchkey. ` +
          'Start it as that user, or set LATCHKEY_DATA_DIR to another folder.',
      );
    }
    return undefined;
  }
  const accounts = await readAccounts();
  // A cluster keeps its owner, even if a better account is created later.
  if (owner !== undefined && owner.uid !== 0) {
    const name = accounts.find((account) => account.uid === owner.uid)?.name ?? `user id ${owner.uid}`;
    return { name, uid: owner.uid, gid: owner.gid };
  }
  const preferred = preferredNames.map((name) => accounts.find((account) => account.name === name));
  const chosen = [...preferred, ...accounts].find((account) => account !== undefined && account.uid > 0);
  if (chosen !== undefined) return chosen;
  throw new EmbeddedPostgresError(
    'no_account',
    'Postgres refuses to run as root, and /etc/passwd has no other user. Create one (`useradd --system latchkey`), ' +
      'start Latchkey as an ordinary user, or set DATABASE_URL to a Postgres of your own.',
  );
}

async function readAccounts(): Promise<Account[]> {
  const lines = (await readFile('/etc/passwd', 'utf8').catch(() => '')).split('\n');
  return lines.flatMap((line) => {
    const [name, , uid, gid] = line.split(':');
    return name && uid && gid ? [{ name, uid: Number(uid), gid: Number(gid) }] : [];
  });
}

/**
 * Creates the data folder, which the account may pass through but not read. Its content has modes of its own.
 * @returns its real path: Postgres identifies its folder by the path, so there must be only one
 * @throws EmbeddedPostgresError `closed_folder`
 */
export async function prepareDataDirectory(wanted: string, account: Account | undefined): Promise<string> {
  try {
    const firstMade = await mkdir(wanted, { recursive: true, mode: account === undefined ? 0o700 : 0o711 });
    const directory = await realpath(wanted);
    if (account === undefined) {
      await access(directory, constants.W_OK | constants.X_OK);
    } else {
      if (firstMade !== undefined) await openMade(await realpath(firstMade), directory);
      await openForAccount(directory, account);
    }
    return directory;
  } catch (error) {
    if (error instanceof EmbeddedPostgresError) throw error;
    throw new EmbeddedPostgresError(
      'closed_folder',
      `The data folder ${wanted} cannot be used (${String(error)}). Set LATCHKEY_DATA_DIR to a folder that ` +
        'can be written, or DATABASE_URL to a Postgres of your own.',
      { cause: error },
    );
  }
}

/** A strict umask also closes new folders, so each of them is opened again, from the innermost up. */
async function openMade(first: string, last: string): Promise<void> {
  for (let folder = last; folder.startsWith(first); folder = path.dirname(folder)) await chmod(folder, 0o711);
}

async function openForAccount(directory: string, account: Account): Promise<void> {
  const closed = await closedFolders(directory, account);
  for (const folder of closed.filter((folder) => folder !== directory)) {
    throw new EmbeddedPostgresError(
      'closed_folder',
      `Postgres runs as ${account.name} because it refuses to be root, and ${account.name} cannot pass through ${folder} ` +
        `to its data in ${directory}. Set LATCHKEY_DATA_DIR to a folder outside of it, or run \`chmod o+x ${folder}\`.`,
    );
  }
  if (closed.length === 0) return;
  const { uid, mode } = await stat(directory);
  if (uid !== 0) {
    throw new EmbeddedPostgresError(
      'closed_folder',
      `The data folder ${directory} belongs to user id ${uid} and is not accessible to ${account.name}, which runs Postgres. ` +
        'Start Latchkey as its owner, or set LATCHKEY_DATA_DIR to another folder.',
    );
  }
  await chmod(directory, (mode & 0o7777) | 0o001);
}

/** The parent folders that the account may not pass through, by their modes. */
async function closedFolders(directory: string, account: Account): Promise<string[]> {
  const closed: string[] = [];
  for (let folder = directory; ; folder = path.dirname(folder)) {
    const { uid, gid, mode } = await stat(folder);
    const bit = uid === account.uid ? 0o100 : gid === account.gid ? 0o010 : 0o001;
    if ((mode & bit) === 0) closed.push(folder);
    if (folder === path.dirname(folder)) return closed;
  }
}
