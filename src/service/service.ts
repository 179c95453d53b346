import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { collectDefaultMetrics, Registry } from 'prom-client';
import { buildApp } from '../app.ts';
import type { Config } from '../config/config.ts';
import type { TokenCrypto } from '../credentials/mint.ts';
import type { DatabaseClient } from '../database/client.ts';
import { createDatabaseClock } from '../database/clock.ts';
import { requireUtf8 } from '../database/fitness.ts';
import { requireGuarantees } from '../database/guarantees.ts';
import { confirmInstallation } from '../database/installation.ts';
import { requireCurrentSchema } from '../database/migrator.ts';
import type { Transactor } from '../database/work.ts';
import { openCheckpointing } from '../history/checkpoints/checkpointing.ts';
import { buildMetricsServer, type Metrics } from '../http/metrics-routes.ts';
import { createGithubKeys } from '../leaks/github-keys.ts';
import { packageVersion } from '../lib/package.ts';
import { countEvents, createTallies } from '../metrics/tallies.ts';
import { createIssuerKeys } from '../oidc/issuer-keys.ts';
import { startVerificationState } from '../verification/state.ts';
import { enqueueDeliveries } from '../webhooks/enqueue-deliveries.ts';
import { startBackground, webhookClient } from './background.ts';
import { connectForService, databaseAccess, migrateAsOwner } from './database-access.ts';
import { bootstrapEmbedded, startEmbeddedInstance } from './embedded-instance.ts';
import { listen, maxConnections } from './listen.ts';
import { createShutdown, phase, type Shutdown } from './shutdown.ts';
import { startTelemetry, type Telemetry } from './telemetry.ts';
import { tokenCrypto } from './token-crypto.ts';

/** The running service with its database. */
export interface Service {
  /** The URL on which the service listens, such as `http://127.0.0.1:8080`. */
  url: string;
  /** With the embedded database: the file with the credentials, and whether it exists and has a first key. */
  embedded: { credentialsFile: string; hasCredentials: boolean; hasKey: boolean } | undefined;
  /** Aborted, with a SchemaMismatch, if the service must be stopped because the schema no longer fits it. */
  unusable: AbortSignal;
  /**
   * Drains, answers the accepted requests, and closes everything, the embedded database last.
   * @returns the names of the phases that failed or did not end in time
   */
  stop(): Promise<string[]>;
}

/**
 * Starts the service: database, checks, verification state, app, background work, port.
 * @throws EmbeddedPostgresError, DatabaseUnfit, SchemaMismatch, InstallationMismatch, GuaranteeBroken,
 * CheckpointFileError, or what `listen` throws
 */
export async function startService(config: Config, logger: Logger): Promise<Service> {
  const shutdown = createShutdown(logger);
  try {
    return await start(config, logger, shutdown);
  } catch (error) {
    await shutdown.run();
    throw error;
  }
}

async function start(config: Config, logger: Logger, shutdown: Shutdown): Promise<Service> {
  const embedded = config.DATABASE_URL === undefined ? await startEmbeddedInstance(config, logger) : undefined;
  if (embedded !== undefined) shutdown.add(phase('postgres', () => embedded.postgres.stop()));
  const access = databaseAccess(config, embedded);
  if (embedded !== undefined || config.MIGRATE_ON_START) await migrateAsOwner(access, logger);

  const client = connectForService(access.appUrl, config, logger);
  shutdown.add(phase('database', () => client.close()));
  const crypto = tokenCrypto(config, embedded?.keyring);
  await requireFitDatabase(client, crypto, config, logger);
  const telemetry = await openTelemetry(config, logger);
  if (telemetry !== undefined) shutdown.add(phase('traces', () => telemetry.close()));
  const checkpointing = await openCheckpointing({
    db: client.db,
    keyring: crypto.keyring,
    file: config.CHECKPOINT_FILE,
    url: config.CHECKPOINT_URL,
    logger,
  });

  const tallies = createTallies();
  const listenUrl = config.LISTEN_DATABASE_URL ?? access.appUrl;
  const recording = {
    db: client.db,
    keyring: crypto.keyring,
    clock: createDatabaseClock(),
    onAppended: enqueueDeliveries,
    onRecorded: (actions: readonly string[]) => countEvents(tallies, actions),
  };
  const unusable = new AbortController();
  const verification = startVerificationState({
    ...recording,
    onSchemaMismatch: (error) => unusable.abort(error),
    listenUrl,
    redisUrl: config.REDIS_URL,
    capacity: config.VERIFY_CACHE_SIZE,
    staleMs: config.VERIFY_STALE_SECONDS * 1000,
    logger,
  });
  shutdown.add(
    phase('usage', () => verification.close()),
    phase('checkpoints', () => checkpointing.close()),
  );
  const transactor: Transactor = { ...recording, onChanged: (ids) => verification.records.invalidate(ids) };
  if (embedded !== undefined) await bootstrapEmbedded(embedded, { transactor, crypto });

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
    webhookClient: webhookClient(config),
    checkpoints: checkpointing.checkpoints,
    limits: {
      callerLimit: config.CALLER_LIMIT,
      addressLimit: config.ADDRESS_LIMIT,
      revealLimit: config.REVEAL_LIMIT,
    },
    oidc: config.oidc && { settings: config.oidc, keys: createIssuerKeys({ issuer: config.oidc.issuer, logger }) },
    githubKeys:
      config.GITHUB_KEYS_URL === undefined ? undefined : createGithubKeys({ url: config.GITHUB_KEYS_URL, logger }),
    publicLimit: config.PUBLIC_LIMIT,
    maxConnections: maxConnections(config, logger),
    eventLoopDelayLimitMs: config.EVENT_LOOP_DELAY_LIMIT_MS,
    undoWindowSeconds: config.UNDO_WINDOW_SECONDS,
    retentionSeconds: config.RETENTION_SECONDS,
    publicUrl: config.PUBLIC_URL,
    trustProxy: config.TRUST_PROXY ?? false,
    version: packageVersion(),
    changeStreams: config.CHANGE_STREAMS,
    draining: draining.signal,
  });
  await verification.ready;
  checkpointing.start();
  const background = await startBackground(config, {
    transactor,
    listenUrl,
    tallies,
    tracer: telemetry?.tracer,
    logger,
  });
  await serveMetrics(app.metrics, config, logger, shutdown);
  shutdown.add(
    phase('requests', () => app.close()),
    phase('jobs', () => background.closeJobs()),
    phase('webhooks', () => background.closeSender()),
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
    unusable: unusable.signal,
    stop() {
      draining.abort();
      return shutdown.run();
    },
  };
}

/** Checks that the database has the right encoding, schema, installation and protection of its history. */
async function requireFitDatabase(
  { db }: DatabaseClient,
  { prefix, keyring }: TokenCrypto,
  config: Config,
  logger: Logger,
): Promise<void> {
  await requireUtf8(db);
  const { unknown } = await requireCurrentSchema(db);
  if (unknown.length > 0) {
    const names = unknown.map(({ name }) => name);
    logger.info({ migrations: names }, 'A newer version has migrated the database. This version works with it.');
  }
  for (const id of await confirmInstallation(db, { tokenPrefix: prefix, keyring })) {
    logger.error({ id }, 'The stored check value of a keyring entry was written without the keyring. It is ignored.');
  }
  await requireGuarantees(db, { isStrict: config.LATCHKEY_STRICT, logger });
}

async function openTelemetry(config: Config, logger: Logger): Promise<Telemetry | undefined> {
  const { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_SERVICE_NAME: serviceName, TOKEN_PREFIX: tokenPrefix } = config;
  if (endpoint === undefined) return undefined;
  return startTelemetry({ endpoint, serviceName, version: packageVersion(), tokenPrefix, logger });
}

/** Serves /metrics on METRICS_PORT, if that is set. */
async function serveMetrics(metrics: Metrics, config: Config, logger: Logger, shutdown: Shutdown): Promise<void> {
  if (config.METRICS_PORT === undefined) return;
  const server = await buildMetricsServer(metrics, { logger, tokenPrefix: config.TOKEN_PREFIX });
  shutdown.add(phase('metrics', () => server.close()));
  await server.listen({
    host: config.HOST,
    port: config.METRICS_PORT,
    listenTextResolver: (address) => `Metrics are at ${address}/metrics`,
  });
}

function registryOfProcess(): Registry {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  return registry;
}
