import fastify, { type FastifyBaseLogger, type FastifyInstance } from 'fastify';
import { serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import type { Registry } from 'prom-client';
import { accessTokenRoutes } from './access-tokens/routes.ts';
import { claimPageRoutes } from './claims/page-routes.ts';
import { claimRoutes, redeemRoutes } from './claims/routes.ts';
import type { TokenCrypto } from './credentials/mint.ts';
import { PoolUsedUp } from './database/client.ts';
import { requireWritable } from './database/fitness.ts';
import { requireCurrentSchema } from './database/migrator.ts';
import { isUnavailable, toProblem } from './database/pg-error.ts';
import type { Transactor } from './database/work.ts';
import type { OrganizationId } from './domain/ids.ts';
import { passingTracer, type Tracer } from './domain/trace.ts';
import type { Checkpoints } from './history/checkpoints/signing.ts';
import { historyExportRoutes } from './history/export-routes.ts';
import { checkpointRoutes, historyRoutes, publicKeyRoutes } from './history/routes.ts';
import { connections } from './http/connections.ts';
import { emptyBody } from './http/empty-body.ts';
import { errorHandler } from './http/error-handler.ts';
import { guard } from './http/guard.ts';
import { healthRoutes } from './http/health.ts';
import { idempotency } from './http/idempotency.ts';
import { jsonBody } from './http/json-body.ts';
import { type Metrics, metricsRoutes } from './http/metrics-routes.ts';
import { openApi } from './http/openapi.ts';
import { overload } from './http/overload.ts';
import { problemRoutes } from './http/problem-routes.ts';
import { publicLimit } from './http/public-limit.ts';
import { type EndpointLimits, endpointLimits } from './http/rate-limit.ts';
import { requestFacts } from './http/request-facts.ts';
import { requestLog } from './http/request-log.ts';
import { serverOptions } from './http/server-options.ts';
import { strictRoutes } from './http/strict-routes.ts';
import { tracing } from './http/tracing.ts';
import { unreadReplies } from './http/unread-replies.ts';
import { keyBulkRoutes } from './keys/bulk-routes.ts';
import { keyImportRoutes } from './keys/import-routes.ts';
import { keyLifecycleRoutes } from './keys/lifecycle-routes.ts';
import { createKeyMint } from './keys/mint.ts';
import { keyRoutes } from './keys/routes.ts';
import { keyViewersRoutes } from './keys/viewers-routes.ts';
import type { GithubKeys } from './leaks/github-keys.ts';
import { githubLeakRoutes } from './leaks/github-routes.ts';
import { createLeakReports } from './leaks/reports.ts';
import { leakRoutes } from './leaks/routes.ts';
import { createMetrics, type MetricsOptions } from './metrics/metrics.ts';
import type { Tallies } from './metrics/tallies.ts';
import { createOidcAuthenticator } from './oidc/authenticator.ts';
import type { IssuerKeys } from './oidc/issuer-keys.ts';
import type { OidcSettings } from './oidc/settings.ts';
import { operatorOrganizationRoutes, organizationRoutes } from './organizations/routes.ts';
import { lockOrganizationShared, organizationExists } from './organizations/store.ts';
import { partnerRoutes } from './partners/routes.ts';
import { recoveryRoutes } from './recovery/routes.ts';
import { createRefusalRecorder } from './refused-requests/recorder.ts';
import { watchRefusals } from './refused-requests/watch.ts';
import { rowRoutes } from './rows/routes.ts';
import { selfServiceRoutes } from './self-service/routes.ts';
import { createAuthenticator } from './verification/authenticate.ts';
import { authorizeRoutes } from './verification/authorize-routes.ts';
import { batchRoutes } from './verification/batch-routes.ts';
import { changeRoutes } from './verification/change-routes.ts';
import { createCredentials } from './verification/credentials.ts';
import { introspectionRoutes, verificationRoutes } from './verification/routes.ts';
import { selfRoutes } from './verification/self-routes.ts';
import type { VerificationState } from './verification/state.ts';
import { usageRoutes } from './verification/usage-routes.ts';
import { createVerifier } from './verification/verifier.ts';
import type { WebhookClient } from './webhooks/connector.ts';
import { webhookDeliveryRoutes } from './webhooks/delivery-routes.ts';
import { webhookRoutes } from './webhooks/routes.ts';

declare module 'fastify' {
  interface FastifyInstance {
    metrics: Metrics;
  }
}

/** Everything that the app needs from outside. */
export interface AppDeps {
  logger: FastifyBaseLogger;
  transactor: Transactor;
  crypto: TokenCrypto;
  verification: Pick<VerificationState, 'feed' | 'records' | 'limits' | 'usage' | 'tokenUses'>;
  /** Default: passes the caller's trace on without recording spans. */
  tracer?: Tracer;
  /** Counters that the app shares with the rest of the service. */
  tallies: Tallies;
  /** The connection pool of `transactor`. */
  pool: MetricsOptions['pool'];
  /** The registry with the metrics of the process. */
  registry?: Registry;
  /** True: another port serves the metrics. */
  metricsElsewhere?: boolean;
  webhookClient: Pick<WebhookClient, 'checkUrl'>;
  checkpoints: Checkpoints;
  limits: EndpointLimits;
  /** Undefined: no identity provider is configured. */
  oidc?: { settings: OidcSettings; keys: IssuerKeys } | undefined;
  /** Undefined: GitHub's reports of leaked keys are not taken. */
  githubKeys?: GithubKeys | undefined;
  undoWindowSeconds: number;
  retentionSeconds: number;
  /** The URL under which clients reach the service, without a slash at the end. Undefined: links are null. */
  publicUrl?: string | undefined;
  trustProxy: string[] | false;
  version: string;
  /** Aborted when the service begins to stop, while it still serves requests. */
  draining?: AbortSignal;
  receiveTimeoutMs?: number;
  writeTimeoutMs?: number;
  maxConnections?: number;
  /** Requests per minute, address and public route. */
  publicLimit?: number;
  /** The maximum number of open change streams. */
  changeStreams?: number;
  /** If the average event-loop delay exceeds this value, requests are rejected with 503. */
  eventLoopDelayLimitMs?: number;
}

/** An exhausted pool does not fail readiness; otherwise the load balancer would shift the load to the other replicas. */
function unlessUsedUp(error: unknown): void {
  if (!(error instanceof PoolUsedUp)) throw error;
}

/** Builds the Fastify app: all registrations, in order. */
export async function buildApp(deps: AppDeps): Promise<FastifyInstance> {
  const { crypto, tallies, transactor, undoWindowSeconds, retentionSeconds } = deps;
  const { draining = new AbortController().signal } = deps;
  const { feed, records, limits, usage, tokenUses } = deps.verification;
  const { db, clock } = transactor;
  const tokenPrefix = crypto.prefix;
  const credentials = createCredentials({ db, logger: deps.logger, records, crypto });
  const authenticator = createAuthenticator(credentials, clock, tokenUses);
  const exists = (id: OrganizationId) => organizationExists(db, id);
  const oidcAuthenticator =
    deps.oidc && createOidcAuthenticator({ ...deps.oidc, clock, tokenPrefix, organizationExists: exists });
  const verifier = createVerifier({ credentials, clock, limits, usage, tally: tallies.verdicts });
  const mint = createKeyMint(crypto);
  const refusals = createRefusalRecorder({ db, clock, logger: deps.logger });

  const app = fastify(serverOptions({ ...deps, tokenPrefix }));
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  await app.register(requestFacts, { trustProxy: deps.trustProxy });
  await app.register(connections, { draining });
  await app.register(tracing, { tracer: deps.tracer ?? passingTracer });
  await app.register(strictRoutes, { tokenPrefix });
  await app.register(overload, { delayLimitMs: deps.eventLoopDelayLimitMs ?? 500 });
  await app.register(jsonBody);
  const onProblem = watchRefusals({ recorder: refusals, tally: tallies.refusedCredentials });
  await app.register(errorHandler, { translate: toProblem, tally: tallies.problems, onProblem });
  app.addHook('onClose', () => refusals.close());
  await app.register(endpointLimits, deps.limits);
  await app.register(publicLimit, { limit: deps.publicLimit ?? 600 });
  await app.register(guard, { authenticator, oidcAuthenticator, organizationExists: exists });
  await app.register(emptyBody);
  await app.register(unreadReplies);
  await app.register(idempotency, {
    transactor,
    keepsPlaintexts: async (tx, id) => (await lockOrganizationShared(tx, id)).key_reveal === 'allowed',
  });
  await app.register(requestLog, { times: tallies.times });
  await app.register(openApi);
  await app.register(problemRoutes);
  const metrics = createMetrics({
    ...deps,
    ...deps.verification,
    db,
    clock,
    tallies,
    hasher: crypto.hasher,
  });
  app.decorate('metrics', metrics);
  if (deps.metricsElsewhere !== true) await app.register(metricsRoutes, { metrics });
  await app.register(healthRoutes, {
    checkVerification: async () => {
      await requireCurrentSchema(db).catch((error: unknown) => {
        if (!isUnavailable(error) || !records.canAnswerWithoutDatabase()) unlessUsedUp(error);
      });
    },
    checkManagement: () =>
      requireCurrentSchema(db)
        .then(() => requireWritable(db))
        .catch(unlessUsedUp),
    draining,
  });

  const v1 = { prefix: '/v1' };
  const windows = { undoWindowSeconds, retentionSeconds };
  await app.register(rowRoutes, { ...v1, transactor, tokenPrefix, undoWindowSeconds });
  await app.register(keyRoutes, { ...v1, transactor, mint, keyring: crypto.keyring, tokenPrefix, undoWindowSeconds });
  await app.register(keyImportRoutes, { ...v1, transactor, tokenPrefix, undoWindowSeconds });
  await app.register(keyBulkRoutes, { ...v1, transactor, undoWindowSeconds });
  await app.register(keyLifecycleRoutes, { ...v1, mint, tokenPrefix, ...windows });
  await app.register(keyViewersRoutes, { ...v1, db });
  await app.register(claimRoutes, {
    ...v1,
    transactor,
    mint,
    tokenPrefix,
    undoWindowSeconds,
    publicUrl: deps.publicUrl,
  });
  await app.register(redeemRoutes, { ...v1, transactor, tokenPrefix });
  await app.register(claimPageRoutes);
  await app.register(partnerRoutes, { ...v1, transactor, mint, tokenPrefix, ...windows });
  await app.register(recoveryRoutes, { ...v1, transactor, ...windows });
  await app.register(webhookRoutes, { ...v1, transactor, client: deps.webhookClient });
  await app.register(webhookDeliveryRoutes, { ...v1, transactor });
  await app.register(historyRoutes, { ...v1, transactor });
  await app.register(historyExportRoutes, { ...v1, db });
  await app.register(checkpointRoutes, { ...v1, checkpoints: deps.checkpoints });
  await app.register(publicKeyRoutes, { checkpoints: deps.checkpoints });
  await app.register(organizationRoutes, { ...v1, transactor });
  await app.register(operatorOrganizationRoutes, { ...v1, transactor });
  await app.register(accessTokenRoutes, { ...v1, transactor, crypto });
  await app.register(verificationRoutes, { ...v1, verifier });
  await app.register(batchRoutes, { ...v1, verifier });
  await app.register(changeRoutes, {
    ...v1,
    feed,
    clock,
    records,
    streamsAtOnce: deps.changeStreams ?? 1_000,
    draining,
  });
  await app.register(authorizeRoutes, { ...v1, verifier });
  await app.register(introspectionRoutes, { ...v1, verifier });
  await app.register(selfRoutes, { ...v1, apiKeys: records.apiKeys, limits, usage });
  await app.register(selfServiceRoutes, { ...v1, db, mint, tokenPrefix, undoWindowSeconds });
  await app.register(usageRoutes, { ...v1, transactor });
  const tally = tallies.leakReports;
  const reports = createLeakReports({ transactor, credentials, retentionSeconds, tally, logger: deps.logger });
  await app.register(leakRoutes, { ...v1, reports });
  if (deps.githubKeys !== undefined) await app.register(githubLeakRoutes, { ...v1, reports, keys: deps.githubKeys });
  return app;
}
