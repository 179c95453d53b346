import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { chown, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { chooseAccount } from '../../src/embedded-postgres/account.ts';
import { identityOf, programEnvironment, runToEnd } from '../../src/embedded-postgres/processes.ts';
import type { ClusterUrls } from './cluster.ts';
import { dbQuery } from './database.ts';
import { freePort } from './ports.ts';
import { eventually, type RunningProcess, run, type Scope } from './process.ts';

const folders = '/usr/lib/postgresql';

/** The programs of the newest Postgres of Debian's packages; undefined if there is none. */
export function programsFolder(): string | undefined {
  const releases = existsSync(folders) ? readdirSync(folders).sort((one, other) => Number(other) - Number(one)) : [];
  return releases.map((release) => `${folders}/${release}/bin`).find((folder) => existsSync(`${folder}/pg_basebackup`));
}

/** For tap's `skip`: false if Debian's Postgres is installed, otherwise the reason. */
export function unlessDebianPostgres(): string | false {
  return programsFolder() === undefined ? `no Postgres is installed in ${folders}` : false;
}

/** One of the two servers. */
export interface PostgresServer {
  port: number;
  process: RunningProcess;
}

/** A primary with the database of Latchkey, and a streaming standby. Both end with the test. */
export interface PostgresPair {
  primary: PostgresServer;
  standby: PostgresServer | undefined;
  /** The database on the primary. */
  urls(): ClusterUrls;
  /** Copies the primary into a new standby. Unless the replication is asynchronous, commits then wait for it. */
  addStandby(): Promise<void>;
  /** Stops the stream to the standby, as a network that is too slow. */
  stall(): Promise<void>;
  /** Makes the standby the primary. It commits alone until it has a standby. */
  promote(): Promise<void>;
}

/** What every server of Debian's Postgres in a test needs. All roles have one password. */
export async function preparePostgres(t: Scope, name: string) {
  const scratch = await mkdtemp(path.join(tmpdir(), `latchkey-${name}-`));
  t.teardown(() => rm(scratch, { recursive: true, force: true, maxRetries: 10 }));
  const account = await chooseAccount(path.join(scratch, 'none'));
  if (account !== undefined) await chown(scratch, account.uid, account.gid);
  const password = randomBytes(16).toString('hex');
  const urlOf = (role: string, port: number, database: string) =>
    `postgres://${role}:${password}@127.0.0.1:${port}/${database}`;
  return {
    scratch,
    account,
    password,
    urlOf,
    /** The database of Latchkey. */
    urlsAt: (port: number): ClusterUrls => ({
      superuser: urlOf('postgres', port, 'latchkey'),
      owner: urlOf('latchkey_owner', port, 'latchkey'),
      app: urlOf('latchkey_app', port, 'latchkey'),
    }),
    async createDatabase(port: number): Promise<void> {
      for (const statement of [
        `create role latchkey_owner login password '${password}'`,
        `create role latchkey_app login password '${password}'`,
        'create database latchkey owner latchkey_owner',
      ]) {
        await dbQuery(urlOf('postgres', port, 'postgres'), statement);
      }
    },
  };
}

const standbyName = 'standby';

/** @param isSynchronous false: a commit does not wait until the standby has it */
export async function startPostgresPair(t: Scope, { isSynchronous = true } = {}): Promise<PostgresPair> {
  const programs = programsFolder() ?? '';
  const { scratch, account, password, urlOf, urlsAt, createDatabase } = await preparePostgres(t, 'pair');
  const identity = identityOf(account);
  let copies = 0;

  const newFolder = () => {
    copies += 1;
    return path.join(scratch, `data${copies}`);
  };
  const superuserUrl = (port: number) => urlOf('postgres', port, 'postgres');

  async function runProgram(program: string, args: readonly string[]): Promise<void> {
    const { code, output } = await runToEnd(path.join(programs, program), args, account);
    if (code !== 0) throw new Error(`${program} failed: ${output}`);
  }

  async function start(directory: string): Promise<PostgresServer> {
    const port = await freePort();
    const settings = [
      `port=${port}`,
      'listen_addresses=127.0.0.1',
      'unix_socket_directories=',
      'max_connections=200',
      'logging_collector=off',
    ];
    const args = ['-D', directory, ...settings.flatMap((setting) => ['-c', setting])];
    const options = { env: programEnvironment, cwd: '/', ...identity };
    const server = run(t, path.join(programs, 'postgres'), args, options);
    // SIGTERM would wait for the clients.
    t.teardown(() => server.child.kill('SIGQUIT'));
    await server.until(/ready to accept (read-only )?connections/);
    return { port, process: server };
  }

  const first = newFolder();
  const passwordFile = path.join(scratch, 'password');
  await writeFile(passwordFile, password);
  const access = ['-U', 'postgres', '--auth=scram-sha-256', `--pwfile=${passwordFile}`];
  await runProgram('initdb', ['-D', first, ...access, '--encoding=UTF8', '--locale=C']);
  const primary = await start(first);
  await dbQuery(superuserUrl(primary.port), `create role replicator login replication password '${password}'`);
  await createDatabase(primary.port);

  const pair: PostgresPair = {
    primary,
    standby: undefined,
    urls: () => urlsAt(pair.primary.port),
    async addStandby() {
      const superuser = superuserUrl(pair.primary.port);
      const directory = newFolder();
      const source = `${urlOf('replicator', pair.primary.port, '')}?application_name=${standbyName}`;
      const how = ['--write-recovery-conf', '--wal-method=stream', '--checkpoint=fast'];
      await runProgram('pg_basebackup', [`--dbname=${source}`, `--pgdata=${directory}`, ...how]);
      pair.standby = await start(directory);
      if (isSynchronous) {
        await dbQuery(superuser, `alter system set synchronous_standby_names = '${standbyName}'`);
        await dbQuery(superuser, 'select pg_reload_conf()');
      }
      const attached = `select from pg_stat_replication where state = 'streaming' and sync_state = $1`;
      await eventually(
        async () => (await dbQuery(superuser, attached, [isSynchronous ? 'sync' : 'async'])).length === 1,
      );
    },
    async stall() {
      const senders = await dbQuery(superuserUrl(pair.primary.port), 'select pid from pg_stat_replication');
      for (const { pid } of senders) process.kill(Number(pid), 'SIGSTOP');
    },
    async promote() {
      if (pair.standby === undefined) throw new Error('there is no standby');
      const superuser = superuserUrl(pair.standby.port);
      // A standby that was copied from a synchronous primary has its setting.
      await dbQuery(superuser, 'alter system reset synchronous_standby_names');
      await dbQuery(superuser, 'select pg_reload_conf()');
      await dbQuery(superuser, 'select pg_promote()');
      pair.primary = pair.standby;
      pair.standby = undefined;
    },
  };
  return pair;
}

/** Sends a signal to a server and its processes at once, as if its machine were switched off or hung. */
export async function signalServer({ process: { child } }: PostgresServer, signal: NodeJS.Signals): Promise<void> {
  await signalFamily(child.pid ?? 0, signal);
}

/** Sends a signal to a process and its children at once. */
export async function signalFamily(pid: number, signal: NodeJS.Signals): Promise<void> {
  const children = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8').catch(() => '');
  for (const one of [pid, ...children.split(' ').filter(Boolean).map(Number)]) {
    try {
      process.kill(one, signal);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  }
}
