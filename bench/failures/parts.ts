import path from 'node:path';
import { generateKeyring } from '../../src/crypto/keyring.ts';
import { type Balancer, startBalancer } from '../../test/support/balancer.ts';
import { migrateAs } from '../../test/support/database.ts';
import { type PatroniCluster, startPatroniCluster } from '../../test/support/patroni.ts';
import { type PoolerSettings, type RunningPooler, startPooler } from '../../test/support/pooler.ts';
import { freePort } from '../../test/support/ports.ts';
import { type PostgresPair, startPostgresPair } from '../../test/support/postgres-pair.ts';
import { eventually, type RunningProcess, request, run, type Scope } from '../../test/support/process.ts';
import { type RunningCluster, startRedisCluster } from '../../test/support/redis-cluster.ts';
import { fill, snippetsOf } from '../../test/support/snippets.ts';

export interface InstallationOptions {
  /** The folder with the compiled service: `dist` or `.test-build`. */
  build: string;
  replicas: number;
  /** `VERIFY_STALE_SECONDS` of the replicas. */
  staleSeconds: number;
}

export interface PartsOptions extends InstallationOptions {
  /** False: the standby may be behind the primary, so a promotion can lose acknowledged changes. */
  isSynchronous: boolean;
}

/** A Latchkey process that can be killed and started again. */
export interface Replica {
  number: number;
  url: string;
  process: RunningProcess;
  /** Undefined while it is killed. */
  isUp: boolean;
  kill(): void;
  /** Lets it answer what it has accepted, and waits until it has ended. */
  stop(): Promise<void>;
  start(): Promise<void>;
  /** Why it does not serve changes, has no live change feed, or does not use Redis though it should; undefined otherwise. */
  trouble(): Promise<string | undefined>;
}

/** Replicas of Latchkey behind HAProxy. */
export interface Installation {
  replicas: Replica[];
  balancer: Balancer;
  tokens: { admin: string; verifier: string };
  staleSeconds: number;
  /** Runs `latchkey` with the settings of the replicas. @returns its exit code and output */
  command(args: string[]): Promise<{ code: number | null; output: string }>;
}

/** Replicas with PgBouncer, a Redis Cluster, and a primary with a standby, on this machine. */
export interface Parts extends Installation {
  postgres: PostgresPair;
  pooler: RunningPooler;
  redis: RunningCluster;
  /** Points PgBouncer to the present primary. */
  redirectPooler(): Promise<void>;
}

/** Replicas with Postgres behind Patroni, on this machine. */
export interface PatroniParts extends Installation {
  patroni: PatroniCluster;
}

export async function startParts(t: Scope, { isSynchronous, ...options }: PartsOptions): Promise<Parts> {
  const postgres = await startPostgresPair(t, { isSynchronous });
  await migrateAs(postgres.urls());
  await postgres.addStandby();
  const poolerPort = await freePort();
  const { username, password } = new URL(postgres.urls().app);
  const poolerSettings = await documentedPooler(poolerPort);
  const pooler = await startPooler(t, poolerSettings(postgres), `"${username}" "${password}"\n`);
  const redis = await startRedisCluster(t);

  const pooled = (database: string) => `postgres://${username}:${password}@127.0.0.1:${poolerPort}/${database}`;
  const installation = await startInstallation(t, options, {
    DATABASE_URL: pooled('latchkey'),
    LISTEN_DATABASE_URL: pooled('latchkey_sessions'),
    REDIS_URL: redis.url,
  });
  const redirectPooler = async () => pooler.reload(poolerSettings(postgres));
  return { ...installation, postgres, pooler, redis, redirectPooler };
}

export async function startPatroniParts(t: Scope, options: InstallationOptions): Promise<PatroniParts> {
  const patroni = await startPatroniCluster(t);
  await migrateAs(patroni.urls);
  const installation = await startInstallation(t, options, { DATABASE_URL: patroni.urls.app });
  return { ...installation, patroni };
}

async function startInstallation(
  t: Scope,
  { build, replicas: count, staleSeconds }: InstallationOptions,
  urls: NodeJS.ProcessEnv,
): Promise<Installation> {
  const environment = {
    ...urls,
    LATCHKEY_KEYRING: generateKeyring(new Date()),
    TRUST_PROXY: '127.0.0.1',
    LOG_LEVEL: 'warn',
    DRAIN_SECONDS: '3',
    VERIFY_STALE_SECONDS: String(staleSeconds),
    CALLER_LIMIT: '1000000000',
    // The cost of argon2id is not what is measured, and a busy machine must not cause rejected requests.
    ARGON2_MEMORY_KIB: '8',
    ARGON2_TIME_COST: '1',
    EVENT_LOOP_DELAY_LIMIT_MS: '60000',
  };
  const runNode = (file: string, args: string[] = [], more: NodeJS.ProcessEnv = {}) =>
    run(t, process.execPath, [path.join(build, file), ...args], { env: { ...environment, ...more } });
  const command = async (args: string[]) => {
    const running = runNode('src/cli/latchkey.js', args);
    const { code } = await running.exited;
    return { code, output: running.output() };
  };
  const names = ['--organization', 'Example', '--admin-email', 'ada@example.com'];
  const bootstrap = runNode('src/cli/latchkey.js', ['bootstrap', ...names]);
  await bootstrap.exited;
  const { adminToken = '', verifierToken = '' } = JSON.parse(bootstrap.stdout()) as Record<string, string>;

  const startReplica = async (number: number): Promise<Replica> => {
    const port = await freePort();
    const url = `http://127.0.0.1:${port}`;
    const start = async () => {
      const started = runNode('src/server.js', [], { PORT: String(port) });
      await eventually(async () => (await read(`${url}/readyz?for=management`)).isOk, 30_000);
      return started;
    };
    const replica: Replica = {
      number,
      url,
      process: await start(),
      isUp: true,
      kill() {
        replica.isUp = false;
        replica.process.child.kill('SIGKILL');
      },
      async stop() {
        replica.isUp = false;
        replica.process.child.kill('SIGTERM');
        await replica.process.exited;
      },
      async start() {
        replica.process = await start();
        replica.isUp = true;
      },
      async trouble() {
        const [ready, metrics] = await Promise.all([read(`${url}/readyz?for=management`), read(`${url}/metrics`)]);
        if (!ready.isOk) return ready.text;
        if (!metrics.text.includes('latchkey_listener_live 1')) return 'the change feed is not live';
        const isShared = metrics.text.includes('latchkey_limits_mode{mode="redis"} 1');
        return 'REDIS_URL' in urls && !isShared ? 'limits are counted in memory' : undefined;
      },
    };
    // At the end nothing is left to drain.
    t.teardown(() => replica.kill());
    return replica;
  };
  const replicas = await Promise.all(Array.from({ length: count }, (_, index) => startReplica(index + 1)));
  const balancer = await startBalancer(
    t,
    replicas.map(({ url }) => Number(new URL(url).port)),
  );
  await eventually(async () => (await fetch(`${balancer.url}/readyz`)).ok);
  const unlimited = { requests: 1_000_000_000, windowSeconds: 60 };
  await request(`${balancer.url}/v1/rate-limit`, { method: 'PUT', token: adminToken, body: unlimited });
  return { replicas, balancer, tokens: { admin: adminToken, verifier: verifierToken }, staleSeconds, command };
}

/** The settings of docs/scaling.md, in front of the present primary. */
async function documentedPooler(port: number): Promise<(postgres: PostgresPair) => PoolerSettings> {
  const [snippet] = await snippetsOf('docs/scaling.md', 'Replicas', 'ini');
  return ({ primary }) =>
    (directory) =>
      fill(snippet, {
        'latchkey = host=10.0.0.21 port=5432': `latchkey = host=127.0.0.1 port=${primary.port}`,
        'latchkey_sessions = host=10.0.0.21 port=5432': `latchkey_sessions = host=127.0.0.1 port=${primary.port}`,
        'listen_addr = *': 'listen_addr = 127.0.0.1',
        'listen_port = 6432': `listen_port = ${port}`,
        '/etc/pgbouncer/userlist.txt': `${directory}/userlist.txt`,
      });
}

async function read(url: string): Promise<{ isOk: boolean; text: string }> {
  try {
    const reply = await fetch(url, { signal: AbortSignal.timeout(5_000) });
    return { isOk: reply.ok, text: await reply.text() };
  } catch (error) {
    return { isOk: false, text: String(error) };
  }
}
