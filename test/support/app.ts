import type { FastifyInstance, InjectOptions, LightMyRequestResponse } from 'fastify';
import type { Test } from 'tap';
import { type AppDeps, buildApp } from '../../src/app.ts';
import { generateKeyring, type Keyring, parseKeyring } from '../../src/crypto/keyring.ts';
import { createSecretHasher, type SecretHasher } from '../../src/crypto/secret-hash.ts';
import { connect, type DatabaseClient } from '../../src/database/client.ts';
import type { Transactor } from '../../src/database/work.ts';
import { createCheckpoints } from '../../src/history/checkpoints/signing.ts';
import { countEvents, createTallies } from '../../src/metrics/tallies.ts';
import { type Bootstrapped, bootstrap } from '../../src/service/bootstrap.ts';
import { createLogger } from '../../src/service/logger.ts';
import {
  startVerificationState,
  type VerificationState,
  type VerificationStateOptions,
} from '../../src/verification/state.ts';
import { createWebhookClient } from '../../src/webhooks/connector.ts';
import { enqueueDeliveries } from '../../src/webhooks/enqueue-deliveries.ts';
import { parseRanges } from '../../src/webhooks/public-address.ts';
import { createTestClock, type TestClock } from './clock.ts';
import type { ClusterUrls } from './cluster.ts';
import { createDatabase, dbDump } from './database.ts';
import { requireDocumented } from './document.ts';

// biome-ignore lint/suspicious/noExplicitAny: a reply's members are what the tests are about to assert
export type Json = any;

export interface Reply {
  status: number;
  headers: LightMyRequestResponse['headers'];
  /** The text, if it is not JSON. */
  body: Json;
}

/** A caller of the API with its credential. */
export interface Client {
  token: string;
  get(path: string, headers?: Record<string, string>): Promise<Reply>;
  post(path: string, body?: unknown, headers?: Record<string, string>): Promise<Reply>;
  put(path: string, body: unknown, headers?: Record<string, string>): Promise<Reply>;
  patch(path: string, body: unknown, headers?: Record<string, string>): Promise<Reply>;
  delete(path: string, headers?: Record<string, string>): Promise<Reply>;
}

export interface TestService {
  app: FastifyInstance;
  client: DatabaseClient;
  verification: VerificationState;
  urls: ClusterUrls;
  keyring: Keyring;
  hasher: SecretHasher;
  bootstrapped: Bootstrapped;
  organizationId: string;
  admin: Client;
  verifier: Client;
  operator: Client;
  as(token: string): Client;
  /** The clock of the service and of everything that a test starts with it. */
  clock: TestClock;
  /** Moves the clock forward. */
  later(ms: number): void;
  logLines: string[];
}

type Overrides = Partial<Omit<AppDeps, 'crypto' | 'verification' | 'tallies' | 'transactor'>> & {
  transactor?: Pick<Transactor, 'db' | 'clock'>;
  keyring?: Keyring;
  urls?: ClusterUrls;
  /** The database of the change feed, and Redis. Default: the service's database, and no Redis. */
  state?: Partial<VerificationStateOptions>;
};

/** The cheapest argon2id; crypto.test.ts tests its costs. */
const cheapHashing = { memoryKib: 8, timeCost: 1, parallelism: 1, concurrency: 4, queueLimit: 1_000 };

/** A token as text or as the hex of a bytea, long enough that no hash contains it by chance. */
const anyToken =
  /lk_[kavoc]_[0-9a-hjkmnp-tv-z]{26}_[0-9A-Za-z]{20,}|6c6b5f(?:6b|61|76|6f|63)5f(?:3[0-9]|6[1-9a-f]|7[0-9a]){8}|whsec_|77687365635f/;

/** Starts the app on a new database, with an organization and its first tokens. */
export async function startService(t: Test, overrides: Overrides = {}): Promise<TestService> {
  const urls = overrides.urls ?? (await createDatabase(t));
  const client = connect({ url: urls.app, poolSize: 20, timeoutMs: 20_000 });
  const logLines: string[] = [];
  const keyring = overrides.keyring ?? parseKeyring(generateKeyring(new Date()));
  const hasher = createSecretHasher(cheapHashing);
  const crypto = { prefix: 'lk', keyring, hasher };
  const logger = createLogger({
    level: 'trace',
    tokenPrefix: 'lk',
    destination: { write: (line) => void logLines.push(line) },
  });
  const clock = createTestClock();
  const { state, transactor: clockAndDb = { db: client.db, clock }, ...others } = overrides;
  const verification = startVerificationState({
    db: clockAndDb.db,
    listenUrl: urls.app,
    redisUrl: undefined,
    keyring,
    capacity: 10_000,
    staleMs: 30_000,
    clock: clockAndDb.clock,
    onAppended: enqueueDeliveries,
    logger,
    ...state,
  });
  const transactor = {
    ...clockAndDb,
    keyring,
    onAppended: enqueueDeliveries,
    onChanged: (ids: Iterable<string>) => verification.records.invalidate(ids),
  };
  const bootstrapped = await bootstrap(
    { transactor, crypto },
    { organizationName: `Organization ${Math.random()}`, adminEmail: 'ada@example.com' },
  );
  const tallies = createTallies();
  const app = await buildApp({
    logger,
    transactor: { ...transactor, onRecorded: (actions) => countEvents(tallies, actions) },
    tallies,
    pool: client.pool,
    verification,
    crypto,
    checkpoints: createCheckpoints({ db: clockAndDb.db, keyring, logger }),
    webhookClient: createWebhookClient({ allowHttp: true, allowedRanges: parseRanges(['127.0.0.0/8']) }),
    limits: { callerLimit: 1_000_000, addressLimit: 1_000_000, revealLimit: 1_000_000 },
    undoWindowSeconds: 86_400,
    retentionSeconds: 2_592_000,
    trustProxy: false,
    version: '0.0.0',
    // The tests themselves use the same event loop.
    eventLoopDelayLimitMs: 60_000,
    ...others,
  });
  await app.ready();
  checkReplies(app);
  t.teardown(async () => {
    await app.close();
    await verification.close();
    await client.close();
  });
  t.teardown(async () => requireNoPlaintext('the log', logLines.join('')));
  t.teardown(async () => requireNoPlaintext('the database', await dbDump(urls.superuser)));
  const as = (token: string) => clientOf(app, token);
  return {
    app,
    client,
    verification,
    urls,
    keyring,
    hasher,
    bootstrapped,
    organizationId: bootstrapped.organizationId,
    admin: as(bootstrapped.adminToken.reveal()),
    verifier: as(bootstrapped.verifierToken.reveal()),
    operator: as(bootstrapped.operatorToken.reveal()),
    as,
    clock,
    later: clock.move,
    logLines,
  };
}

/** For every service of every test: nothing that it wrote contains a plaintext. */
function requireNoPlaintext(where: string, text: string): void {
  const found = anyToken.exec(text);
  if (found !== null) throw new Error(`${where} has a plaintext: ${text.slice(found.index - 100, found.index + 60)}`);
}

/** For every service of every test: every reply is what the OpenAPI document says. */
function checkReplies(app: FastifyInstance): void {
  const inject = app.inject.bind(app) as (options: InjectOptions | string) => Promise<LightMyRequestResponse>;
  const checked = async (options: InjectOptions | string) => {
    const response = await inject(options);
    requireDocumented({
      method: response.raw.req.method ?? 'GET',
      url: response.raw.req.url ?? '',
      status: response.statusCode,
      contentType: response.headers['content-type']?.toString(),
      text: response.body,
    });
    return response;
  };
  app.inject = checked as typeof app.inject;
}

function clientOf(app: FastifyInstance, token: string): Client {
  const call = async (
    method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE',
    url: string,
    headers: Record<string, string>,
    body?: unknown,
  ): Promise<Reply> => {
    const response = await app.inject({
      method,
      url,
      headers: { authorization: `Bearer ${token}`, ...headers },
      ...(body === undefined ? {} : { payload: body as object }),
    });
    const isJson = /[/+]json\b/.test(String(response.headers['content-type']));
    return { status: response.statusCode, headers: response.headers, body: isJson ? response.json() : response.body };
  };
  return {
    token,
    get: (path, headers = {}) => call('GET', path, headers),
    post: (path, body, headers = {}) => call('POST', path, headers, body),
    put: (path, body, headers = {}) => call('PUT', path, headers, body),
    patch: (path, body, headers = {}) => call('PATCH', path, headers, body),
    delete: (path, headers = {}) => call('DELETE', path, headers),
  };
}
