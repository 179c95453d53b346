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
import type { Transactor } from '../src/database/work.ts';
import type { OrganizationId } from '../src/domain/ids.ts';
import { embeddedRoles } from '../src/embedded-postgres/cluster.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../src/embedded-postgres/start.ts';
import { type Bootstrapped, bootstrap } from '../src/service/bootstrap.ts';
import { tokenCrypto } from '../src/service/token-crypto.ts';
import { enqueueDeliveries } from '../src/webhooks/enqueue-deliveries.ts';
import { dbAddKeys, dbLiftLimits } from './key-rows.ts';
import { freePort, type Server, startServer } from './servers.ts';

/** A Postgres of its own with an organization in it, and everything that was started is ended by `close`. */
export interface Stage {
  urls: EmbeddedPostgres['urls'];
  transactor: Transactor;
  crypto: TokenCrypto;
  bootstrapped: Bootstrapped;
  /** Keys of an organization, written past the API; see `dbAddKeys`. */
  addKeys(organizationId: OrganizationId, partners: number): Promise<string[]>;
  startLatchkey(env?: NodeJS.ProcessEnv): Promise<Server>;
  startBare(): Promise<Server>;
  /** The URL of a Redis of its own; undefined where none is installed. */
  startRedis(): Promise<string | undefined>;
  close(): Promise<void>;
}

const root = path.dirname(import.meta.dirname);
const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;

export async function openStage(): Promise<Stage> {
  const closers: Array<() => Promise<unknown>> = [];
  const close = async () => {
    for (const closer of closers.splice(0).reverse()) await closer();
  };
  try {
    await build();
    const scratch = await mkdtemp(path.join(tmpdir(), 'latchkey-bench-'));
    closers.push(() => rm(scratch, { recursive: true, force: true, maxRetries: 10 }));
    const postgres = await startEmbeddedPostgres({
      dataDirectory: scratch,
      copiesDirectory: path.join(scratch, 'programs'),
      port: 0,
    });
    closers.push(() => postgres.stop());
    const { urls } = postgres;
    await migrateAll(urls.owner);
    const client = connect({ url: urls.app, poolSize: 10 });
    closers.push(() => client.close());

    const keyringText = generateKeyring(new Date());
    const keyring = parseKeyring(keyringText);
    const environment = { DATABASE_URL: urls.app, LATCHKEY_KEYRING: keyringText };
    const crypto = tokenCrypto(readConfig(environment));
    await confirmInstallation(client.db, { tokenPrefix: crypto.prefix, keyring });
    const transactor = { db: client.db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries };
    const bootstrapped = await bootstrap(
      { transactor, crypto },
      { organizationName: 'Bench', adminEmail: 'bench@example.com' },
    );
    await dbLiftLimits(urls.superuser);
    const argon2idHash = await crypto.hasher.hash(new Secret('of no key'));
    const keep = (server: Server) => {
      closers.push(server.stop);
      return server;
    };
    return {
      urls,
      transactor,
      crypto,
      bootstrapped,
      addKeys: (organizationId, partners) =>
        dbAddKeys(urls.superuser, { organizationId, partners, keyring, argon2idHash }),
      startLatchkey: async (env = {}) =>
        keep(await startServer(path.join(root, 'dist/src/server.js'), { env: { ...environment, ...env } })),
      startBare: async () => keep(await startServer(path.join(root, 'bench/baseline-server.ts'), { imports: [tsx] })),
      startRedis: () => startRedis(closers),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** What is measured is what `npm start` runs. */
async function build(): Promise<void> {
  const builder = spawn(process.execPath, [path.join(root, 'src/prestart.mjs')], { stdio: 'inherit' });
  const [code] = await once(builder, 'exit');
  if (code !== 0) throw new Error('the build failed');
}

async function migrateAll(ownerUrl: string): Promise<void> {
  const owner = connect({ url: ownerUrl, poolSize: 2 });
  try {
    await migrate(owner, { appRole: embeddedRoles.app });
  } finally {
    await owner.close();
  }
}

async function startRedis(closers: Array<() => Promise<unknown>>): Promise<string | undefined> {
  const port = await freePort();
  const settings = { port, bind: '127.0.0.1', save: '', appendonly: 'no', daemonize: 'no' };
  const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const redis = spawn('redis-server', args, { stdio: 'ignore', cwd: tmpdir() });
  const ended = once(redis, 'exit').catch(() => undefined);
  const started = await once(redis, 'spawn').then(
    () => true,
    () => false,
  );
  if (!started) return undefined;
  closers.push(async () => {
    redis.kill('SIGTERM');
    await ended;
  });
  return `redis://127.0.0.1:${port}`;
}
