import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { readConfig } from '../src/config/config.ts';
import type { TokenCrypto } from '../src/credentials/mint.ts';
import { generateKeyring, parseKeyring } from '../src/crypto/keyring.ts';
import { Secret } from '../src/crypto/secret.ts';
import { connect } from '../src/database/client.ts';
import { createDatabaseClock } from '../src/database/clock.ts';
import { confirmInstallation } from '../src/database/installation.ts';
import { migrate } from '../src/database/migrator.ts';
import { type Transactor, transact } from '../src/database/work.ts';
import { systemActor } from '../src/domain/actor.ts';
import type { OrganizationId } from '../src/domain/ids.ts';
import { embeddedRoles } from '../src/embedded-postgres/cluster.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../src/embedded-postgres/start.ts';
import { putRateLimit } from '../src/organizations/commands.ts';
import { type Bootstrapped, bootstrap } from '../src/service/bootstrap.ts';
import { tokenCrypto } from '../src/service/token-crypto.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { readKept, writeKept } from './kept.ts';
import { dbAddKeys } from './key-rows.ts';
import { freePort, type Server, startServer } from './servers.ts';

/** A separate Postgres with one organization, and the servers that are measured; `stop` stops them all. */
export interface Testbed {
  urls: EmbeddedPostgres['urls'];
  /** For processes of its own. */
  env: NodeJS.ProcessEnv;
  transactor: Transactor;
  crypto: TokenCrypto;
  bootstrapped: Bootstrapped;
  /** Writes keys directly into the database; see `dbAddKeys`. @returns the plaintexts */
  addKeys(organizationId: OrganizationId, partners: number): Promise<string[]>;
  startLatchkey(env?: NodeJS.ProcessEnv): Promise<Server>;
  startBaseline(): Promise<Server>;
  /** @returns the URL of a separate Redis; undefined if redis-server is not installed */
  startRedis(): Promise<string | undefined>;
  stop(): Promise<void>;
}

const root = path.dirname(import.meta.dirname);
const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;

/** What a kept testbed needs to start again. */
interface Kept {
  keyringText: string;
  bootstrapped: Bootstrapped;
}

/** @param keptIn a folder that keeps the database for a later run; default: a temporary folder */
export async function startTestbed(keptIn?: string): Promise<Testbed> {
  const cleanups: Array<() => Promise<unknown>> = [];
  const stop = async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  };
  try {
    await build();
    const directory = keptIn ?? (await mkdtemp(path.join(tmpdir(), 'latchkey-bench-')));
    if (keptIn === undefined) cleanups.push(() => rm(directory, { recursive: true, force: true, maxRetries: 10 }));
    const kept = readKept<Kept>(directory, 'testbed');
    const postgres = await startEmbeddedPostgres({
      dataDirectory: directory,
      copiesDirectory: path.join(directory, 'programs'),
      port: 0,
    });
    cleanups.push(() => postgres.stop());
    const { urls } = postgres;
    await migrateAll(urls.owner);
    const client = connect({ url: urls.app, poolSize: 10 });
    cleanups.push(() => client.close());

    const keyringText = kept?.keyringText ?? generateKeyring(new Date());
    const keyring = parseKeyring(keyringText);
    const env = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText };
    const crypto = tokenCrypto(readConfig(env));
    await confirmInstallation(client.db, { tokenPrefix: crypto.prefix, keyring });
    const transactor = { db: client.db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries };
    const bootstrapped =
      kept?.bootstrapped ??
      (await bootstrap({ transactor, crypto }, { organizationName: 'Bench', adminEmail: 'bench@example.com' }));
    const by = { actor: systemActor('bench'), organizationId: bootstrapped.organizationId, request: null };
    await transact(transactor, by, (work) => putRateLimit(work, { requests: 1_000_000_000, windowSeconds: 86_400 }));
    if (keptIn !== undefined) writeKept(keptIn, 'testbed', { keyringText, bootstrapped } satisfies Kept);
    const argon2idHash = await crypto.hasher.hash(new Secret('not a key'));
    const stopLater = (server: Server) => {
      cleanups.push(server.stop);
      return server;
    };
    return {
      urls,
      transactor,
      crypto,
      bootstrapped,
      env,
      addKeys: (organizationId, partners) =>
        dbAddKeys(urls.superuser, { organizationId, partners, keyring, argon2idHash }),
      startLatchkey: async (extraEnv = {}) =>
        stopLater(await startServer(path.join(root, 'dist/src/server.js'), { env: { ...env, ...extraEnv } })),
      startBaseline: async () =>
        stopLater(await startServer(path.join(root, 'bench/baseline-server.ts'), { imports: [tsx] })),
      startRedis: () => startRedis(cleanups),
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Builds what `npm start` runs, and the client. */
async function build(): Promise<void> {
  const compiler = path.join(root, 'node_modules/typescript/bin/tsc');
  for (const args of [['src/prestart.mjs'], [compiler, '-p', 'clients/node']]) {
    const build = spawn(process.execPath, args, { cwd: root, stdio: 'inherit' });
    const [code] = await once(build, 'exit');
    if (code !== 0) throw new Error('the build failed');
  }
}

async function migrateAll(ownerUrl: string): Promise<void> {
  const owner = connect({ url: ownerUrl, poolSize: 2 });
  try {
    await migrate(owner, { appRole: embeddedRoles.app });
  } finally {
    await owner.close();
  }
}

async function startRedis(cleanups: Array<() => Promise<unknown>>): Promise<string | undefined> {
  const port = await freePort();
  const settings = { port, bind: '127.0.0.1', save: '', appendonly: 'no', daemonize: 'no' };
  const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const redis = spawn('redis-server', args, { stdio: 'ignore', cwd: tmpdir() });
  const exited = once(redis, 'exit').catch(() => undefined);
  const started = await once(redis, 'spawn').then(
    () => true,
    () => false,
  );
  if (!started) return undefined;
  cleanups.push(async () => {
    redis.kill('SIGTERM');
    await exited;
  });
  return `redis://127.0.0.1:${port}`;
}
