import { setTimeout as delay } from 'node:timers/promises';
import type { FastifyInstance } from 'fastify';
import type { Logger } from 'pino';
import { collectDefaultMetrics, Registry } from 'prom-client';
import { buildApp } from '../app.ts';
import type { Config } from '../config/config.ts';
import type { TokenCrypto } from '../credentials/mint.ts';
import { connect, type DatabaseClient } from '../database/client.ts';
import { createDatabaseClock } from '../database/clock.ts';
import { requireUtf8 } from '../database/fitness.ts';
import { requireGuarantees } from '../database/guarantees.ts';
import { confirmInstallation, isRestoredCopy, restoredCopyRemedy } from '../database/installation.ts';
import { migrate, requireCurrentSchema } from '../database/migrator.ts';
import type { Transactor } from '../database/work.ts';
import { passingTracer } from '../domain/trace.ts';
import { embeddedRoles } from '../embedded-postgres/cluster.ts';
import { openCheckpointing } from '../history/checkpoints/checkpointing.ts';
import { buildMetricsServer } from '../http/metrics-routes.ts';
import { jobs } from '../jobs/list.ts';
import { startJobs } from '../jobs/runner.ts';
import { createKeyMint } from '../keys/mint.ts';
import { descriptorLimit } from '../lib/descriptor-limit.ts';
import { packageVersion } from '../lib/package.ts';
import { countEvents, createTallies } from '../metrics/metrics.ts';
import { createIssuerKeys } from '../oidc/issuer-keys.ts';
import { isAnyOrganizationThere } from '../organizations/store.ts';
import { startVerificationState } from '../verification/state.ts';
import { createWebhookClient } from '../webhooks/connector.ts';
import { enqueueDeliveries, type SendPayload, sendTask } from '../webhooks/enqueue-deliveries.ts';
import { parseRanges } from '../webhooks/public-address.ts';
import { startWebhookSender } from '../webhooks/sender.ts';
import { bootstrap } from './bootstrap.ts';
import { type EmbeddedInstance, startEmbeddedInstance } from './embedded-instance.ts';
import { createShutdown, type Phase } from './shutdown.ts';
import { startTelemetry } from './telemetry.ts';
import { tokenCrypto } from './token-crypto.ts';

/** The service as a whole: with its database, listening. */
export interface Service {
  /** Where it listens, such as `http://127.0.0.1:8080`. */
  url: string;
  /** With the embedded database: where the tokens are, and whether a first key is beside them. */
  embedded: { credentialsFile: string; hasCredentials: boolean; hasKey: boolean } | undefined;
  /**
   * Says that it is about to end, answers what it has accepted, and ends with its database.
   * @returns the names of the phases that did not end in order
   */
  stop(): Promise<string[]>;
}

const defaultPort = 8_080;

/**
 * What each phase of the end may take. Those that end one after the other take less than 10 s together, with a drain of
 * 1 s; only an embedded Postgres comes on top.
 */
const phaseTimeoutsMs = {
  requests: 4_200,
  jobs: 4_200,
  webhooks: 4_200,
  metrics: 300,
  usage: 3_000,
  checkpoints: 1_900,
  traces: 450,
  database: 400,
  postgres: 5_000,
};

function phase(name: keyof typeof phaseTimeoutsMs, run: () => Promise<unknown>): Phase {
  return { name, timeoutMs: phaseTimeoutsMs[name], run };
}

/** The first admin of an embedded instance. */
const firstAdminEmail = 'admin@example.com';

/**
 * Configuration → database → app → listen.
 * @throws EmbeddedPostgresError, DatabaseUnfit, SchemaMismatch, InstallationMismatch, GuaranteeBroken, CheckpointFileError, or what
 * `listen` throws
 */
export async function startService(config: Config, logger: Logger): Promise<Service> {
  const shutdown = createShutdown(logger);
  try {
    const embedded = config.DATABASE_URL === undefined ? await startEmbeddedInstance(config, logger) : undefined;
    if (embedded !== undefined) shutdown.add(phase('postgres', () => embedded.postgres.stop()));
    const database = databaseAccess(config, embedded);
    if (embedded !== undefined || config.MIGRATE_ON_START) await migrateAsOwner(database, logger);

    const client = connectForService(database.appUrl, config, logger);
    shutdown.add(phase('database', () => client.close()));
    await requireUtf8(client.db);
    await requireCurrentSchema(client.db);
    const crypto = tokenCrypto(config, embedded?.keyring);
    for (const id of await confirmInstallation(client.db, { tokenPrefix: crypto.prefix, keyring: crypto.keyring })) {
      logger.error({ id }, 'The stored check value of a keyring entry was written without the keyring. It is ignored.');
    }
    await requireGuarantees(client.db, { isStrict: config.LATCHKEY_STRICT, logger });
    const clock = createDatabaseClock();
    const tallies = createTallies();
    const { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_SERVICE_NAME: serviceName, TOKEN_PREFIX: tokenPrefix } = config;
    const telemetry =
      endpoint === undefined
        ? undefined
        : await startTelemetry({ endpoint, serviceName, version: packageVersion(), tokenPrefix, logger });
    if (telemetry !== undefined) shutdown.add(phase('traces', () => telemetry.close()));
    const checkpointing = await openCheckpointing({
      db: client.db,
      keyring: crypto.keyring,
      file: config.CHECKPOINT_FILE,
      url: config.CHECKPOINT_URL,
      logger,
    });
    const onRecorded = (actions: readonly string[]) => countEvents(tallies, actions);
    const verification = startVerificationState({
      db: client.db,
      listenUrl: config.LISTEN_DATABASE_URL ?? database.appUrl,
      redisUrl: config.REDIS_URL,
      keyring: crypto.keyring,
      capacity: config.VERIFY_CACHE_SIZE,
      staleMs: config.VERIFY_STALE_SECONDS * 1000,
      clock,
      onAppended: enqueueDeliveries,
      onRecorded,
      logger,
    });
    shutdown.add(
      phase('usage', () => verification.close()),
      phase('checkpoints', () => checkpointing.close()),
    );
    const transactor: Transactor = {
      db: client.db,
      keyring: crypto.keyring,
      clock,
      onAppended: enqueueDeliveries,
      onChanged: (ids) => verification.records.invalidate(ids),
      onRecorded,
    };
    if (embedded !== undefined) await bootstrapOnce(embedded, transactor, crypto);

    const egress = {
      allowHttp: config.WEBHOOK_ALLOW_HTTP,
      allowedRanges: parseRanges(config.WEBHOOK_ALLOW_CIDRS ?? []),
    };
    const draining = new AbortController();
    const app = await buildApp({
      logger,
      transactor,
      tallies,
      ...(telemetry === undefined ? {} : { tracer: telemetry.tracer }),
      pool: client.pool,
      registry: registryOfProcess(),
      metricsElsewhere: config.METRICS_PORT !== undefined,
      crypto,
      verification,
      webhookClient: createWebhookClient(egress),
      checkpoints: checkpointing.checkpoints,
      limits: {
        callerLimit: config.CALLER_LIMIT,
        addressLimit: config.ADDRESS_LIMIT,
        revealLimit: config.REVEAL_LIMIT,
      },
      oidc: config.oidc && { settings: config.oidc, keys: createIssuerKeys({ issuer: config.oidc.issuer, logger }) },
      publicLimit: config.PUBLIC_LIMIT,
      maxConnections: connectionsWithinLimits(config, logger),
      eventLoopDelayLimitMs: config.EVENT_LOOP_DELAY_LIMIT_MS,
      undoWindowSeconds: config.UNDO_WINDOW_SECONDS,
      retentionSeconds: config.RETENTION_SECONDS,
      trustProxy: config.TRUST_PROXY ?? false,
      version: packageVersion(),
      changeStreams: config.CHANGE_STREAMS,
      draining: draining.signal,
    });
    await verification.ready;
    checkpointing.start();
    const background = { ...transactor, url: config.LISTEN_DATABASE_URL ?? database.appUrl, logger };
    const isCopy = await isRestoredCopy(client.db);
    if (isCopy) logger.warn(`This database was restored from another one. ${restoredCopyRemedy}`);
    const senderOptions = {
      ...background,
      keyring: crypto.keyring,
      tokenPrefix: crypto.prefix,
      client: createWebhookClient(egress),
      tally: tallies.webhookAttempts,
      tracer: telemetry?.tracer ?? passingTracer,
    };
    const sender = isCopy ? undefined : startWebhookSender(senderOptions);
    const jobRunner = startJobs({
      ...background,
      jobs,
      tasks: { [sendTask]: (payload) => sender?.wake((payload as SendPayload).organizationId) },
      settings: { usageHourlyDays: config.USAGE_HOURLY_DAYS, retentionSeconds: config.RETENTION_SECONDS },
    });
    if (config.METRICS_PORT !== undefined) {
      const server = await buildMetricsServer(app.metrics, { logger, tokenPrefix: config.TOKEN_PREFIX });
      shutdown.add(phase('metrics', () => server.close()));
      await server.listen({
        host: config.HOST,
        port: config.METRICS_PORT,
        listenTextResolver: (address) => `Metrics are at ${address}/metrics`,
      });
    }
    shutdown.add(
      phase('requests', () => app.close()),
      phase('jobs', () => jobRunner.close()),
      phase('webhooks', async () => sender?.close()),
    );
    await app.ready();
    const url = await listen(app, config, embedded !== undefined);
    const credentials = await embedded?.confirmCredentials(url);
    const drainMs = config.DRAIN_SECONDS * 1_000;
    shutdown.add({ name: 'drain', timeoutMs: drainMs + 500, run: () => delay(drainMs) });
    return {
      url,
      embedded: embedded && {
        credentialsFile: embedded.credentialsFile,
        hasCredentials: credentials !== undefined,
        hasKey: credentials?.key !== undefined,
      },
      stop() {
        draining.abort();
        return shutdown.run();
      },
    };
  } catch (error) {
    await shutdown.run();
    throw error;
  }
}

/** The database as the two roles reach it: which URL, and which role gets its rights. */
interface DatabaseAccess {
  appUrl: string;
  /** The schema's owner; the same as `appUrl` where there is only one role. */
  ownerUrl: string;
  appRole: string | undefined;
}

function databaseAccess(config: Config, embedded: EmbeddedInstance | undefined): DatabaseAccess {
  if (embedded !== undefined) {
    const { app, owner } = embedded.postgres.urls;
    return { appUrl: app, ownerUrl: owner, appRole: embeddedRoles.app };
  }
  const appUrl = config.DATABASE_URL ?? '';
  const ownerUrl = config.MIGRATION_DATABASE_URL ?? appUrl;
  return { appUrl, ownerUrl, appRole: ownerUrl === appUrl ? undefined : config.APP_ROLE };
}

async function migrateAsOwner({ ownerUrl, appRole }: DatabaseAccess, logger: Logger): Promise<void> {
  const owner = connect({ url: ownerUrl, poolSize: 2 });
  try {
    const applied = await migrate(owner, { appRole });
    if (applied.length > 0) logger.info({ applied }, 'The schema was migrated.');
  } finally {
    await owner.close();
  }
}

function connectForService(url: string, config: Config, logger: Logger): DatabaseClient {
  return connect({
    url,
    poolSize: config.DATABASE_POOL_SIZE,
    timeoutMs: config.DATABASE_TIMEOUT_MS,
    queueLimit: config.DATABASE_QUEUE_LIMIT,
    onLost: (error) => logger.warn({ err: error }, 'A connection to Postgres was lost.'),
  });
}

function registryOfProcess(): Registry {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  return registry;
}

/** Descriptors for what is no connection of a client: files, webhooks, Redis, jobs, the port for metrics. */
const descriptorsKept = 160;

const connectionsAtLeast = 16;

/** Connections beyond the descriptor limit would keep the service from its database and its files. */
function connectionsWithinLimits({ MAX_CONNECTIONS, DATABASE_POOL_SIZE }: Config, logger: Logger): number {
  const limit = descriptorLimit();
  const left = (limit ?? Number.POSITIVE_INFINITY) - descriptorsKept - DATABASE_POOL_SIZE;
  if (left >= MAX_CONNECTIONS) return MAX_CONNECTIONS;
  const connections = Math.max(connectionsAtLeast, left);
  logger.warn({ limit, connections }, 'The descriptor limit allows fewer connections than MAX_CONNECTIONS.');
  return connections;
}

async function bootstrapOnce(embedded: EmbeddedInstance, transactor: Transactor, crypto: TokenCrypto): Promise<void> {
  if (!(await isAnyOrganizationThere(transactor.db))) {
    await bootstrap(
      { transactor, crypto },
      {
        organizationName: 'My organization',
        adminEmail: firstAdminEmail,
        keyMint: createKeyMint(crypto),
        beforeCommit: (made) => embedded.prepareCredentials(made),
      },
    );
  }
  await embedded.confirmCredentials();
}

/** Where nobody asked for a port and nobody else relies on it, another one is better than no start. */
async function listen(app: FastifyInstance, config: Config, mayMove: boolean): Promise<string> {
  const host = config.HOST;
  try {
    return await app.listen({ host, port: config.PORT ?? defaultPort });
  } catch (error) {
    const taken = (error as NodeJS.ErrnoException).code === 'EADDRINUSE';
    if (!taken || !mayMove || config.PORT !== undefined) throw error;
    app.log.info(`Port ${defaultPort} is taken; another one is used. Set PORT to choose.`);
    return app.listen({ host, port: 0 });
  }
}
