import { randomBytes } from 'node:crypto';
import { chown, mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Account } from './account.ts';
import { EmbeddedPostgresError } from './failure.ts';
import { runToEnd } from './processes.ts';
import type { Programs } from './programs.ts';
import { unfinishedName } from './unfinished.ts';

/** The roles of an embedded cluster: the two that Latchkey works with, and the one that owns the cluster. */
export const embeddedRoles = { superuser: 'postgres', owner: 'latchkey_owner', app: 'latchkey_app' } as const;

export const embeddedDatabase = 'latchkey';

export type EmbeddedPasswords = Record<keyof typeof embeddedRoles, string>;

interface ClusterOptions {
  /** The data directory of Postgres. It is created if it does not exist. */
  cluster: string;
  programs: Programs;
  account: Account | undefined;
  /** False: fast but not crash-safe, for tests only. */
  durable: boolean;
}

const passwordsFile = 'latchkey-passwords.json';

/**
 * Opens the cluster, or creates it with its roles, passwords and database. A new cluster is built under another name
 * and renamed when it is complete, so a start that was killed leaves nothing that disturbs a later one.
 * @throws EmbeddedPostgresError `initdb_failed`, `passwords_lost`
 */
export async function openCluster(options: ClusterOptions): Promise<EmbeddedPasswords> {
  if ((await readPasswords(options.cluster)) === undefined) await makeCluster(options);
  const passwords = await readPasswords(options.cluster);
  if (passwords !== undefined) return passwords;
  throw new EmbeddedPostgresError(
    'passwords_lost',
    `${options.cluster} exists, but its ${passwordsFile} does not, and Latchkey cannot log in without it. Restore the file, ` +
      'or move the folder away to start with an empty database.',
  );
}

async function readPasswords(cluster: string): Promise<EmbeddedPasswords | undefined> {
  try {
    return JSON.parse(await readFile(path.join(cluster, passwordsFile), 'utf8')) as EmbeddedPasswords;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

async function makeCluster({ cluster, programs, account, durable }: ClusterOptions): Promise<void> {
  if ((await stat(cluster).catch(() => undefined)) !== undefined) return;
  const made = unfinishedName(cluster);
  try {
    await mkdir(made, { mode: 0o700 });
    await changeOwner(made, account);
    await initialise(made, programs, account, durable);
    await addRoles(made, programs, account);
    await rename(made, cluster);
  } catch (error) {
    await rm(made, { recursive: true, force: true });
    // Another start was faster; use its cluster.
    if ((error as NodeJS.ErrnoException).code !== 'ENOTEMPTY') throw error;
  }
}

async function changeOwner(target: string, account: Account | undefined): Promise<void> {
  if (account !== undefined) await chown(target, account.uid, account.gid);
}

async function initialise(
  made: string,
  programs: Programs,
  account: Account | undefined,
  durable: boolean,
): Promise<void> {
  const { code, output } = await runToEnd(
    programs.initdb,
    [
      `--pgdata=${made}`,
      `--username=${embeddedRoles.superuser}`,
      '--auth=reject',
      '--encoding=UTF8',
      '--locale=C',
      '--locale-provider=builtin',
      '--builtin-locale=C.UTF-8',
      ...(durable ? [] : ['--no-sync']),
    ],
    account,
  );
  if (code !== 0) throw refused('initdb', output);
  await writeFile(path.join(made, 'pg_hba.conf'), 'host all all 127.0.0.1/32 scram-sha-256\n');
}

/** In single-user mode, before any server listens: nobody can connect before the passwords are set. */
async function addRoles(made: string, programs: Programs, account: Account | undefined): Promise<void> {
  const password = () => randomBytes(24).toString('base64url');
  const passwords: EmbeddedPasswords = { superuser: password(), owner: password(), app: password() };
  const statements = [
    `alter role ${embeddedRoles.superuser} password '${passwords.superuser}'`,
    `create role ${embeddedRoles.owner} login password '${passwords.owner}'`,
    `create role ${embeddedRoles.app} login password '${passwords.app}'`,
    `create database ${embeddedDatabase} owner ${embeddedRoles.owner}`,
    `revoke all on database ${embeddedDatabase} from public`,
  ];
  const { code, output } = await runToEnd(
    programs.postgres,
    ['--single', '-D', made, '-c', 'exit_on_error=on', 'postgres'],
    account,
    `${statements.join(';\n')};\n`,
  );
  if (code !== 0) throw refused('postgres --single', output);
  const file = path.join(made, passwordsFile);
  await writeFile(file, JSON.stringify(passwords), { mode: 0o600 });
  await changeOwner(file, account);
}

function refused(program: string, output: string): EmbeddedPostgresError {
  return new EmbeddedPostgresError(
    'initdb_failed',
    `The embedded Postgres could not create its data folder. The output of ${program}:\n${output}\n` +
      'Fix that, or set DATABASE_URL to a Postgres of your own.',
  );
}
