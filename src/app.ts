import fastify, { type FastifyBaseLogger, type FastifyInstance } from 'fastify';
import { serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import { accessTokenRoutes } from './access-tokens/routes.ts';
import { createAuthenticator } from './auth/authenticate.ts';
import type { TokenCrypto } from './auth/mint.ts';
import { createSecretCheck } from './auth/secret-check.ts';
import { organizationExists, replaceTag } from './auth/store.ts';
import { createAttemptLimit } from './crypto/attempt-limit.ts';
import { requireCurrentSchema } from './db/migrator.ts';
import { toProblem } from './db/pg-error.ts';
import type { Transactor } from './db/work.ts';
import { historyRoutes } from './history/routes.ts';
import { errorHandler } from './http/error-handler.ts';
import { guard } from './http/guard.ts';
import { healthRoutes } from './http/health.ts';
import { idempotency } from './http/idempotency.ts';
import { jsonBody } from './http/json-body.ts';
import { metricsRoutes } from './http/metrics-routes.ts';
import { openApi } from './http/openapi.ts';
import { problemRoutes } from './http/problem-routes.ts';
import { type EndpointLimits, endpointLimits } from './http/rate-limit.ts';
import { requestLog } from './http/request-log.ts';
import { serverOptions } from './http/server-options.ts';
import { strictRoutes } from './http/strict-routes.ts';
import { keyLifecycleRoutes } from './keys/lifecycle-routes.ts';
import { createKeyMint } from './keys/mint.ts';
import { createReopener } from './keys/reveal.ts';
import { keyRoutes } from './keys/routes.ts';
import { keyViewersRoutes } from './keys/viewers-routes.ts';
import { createMetrics } from './metrics.ts';
import { operatorOrganizationRoutes, organizationRoutes } from './organizations/routes.ts';
import { partnerRoutes } from './partners/routes.ts';
import { recoveryRoutes } from './recovery/routes.ts';
import { rowRoutes } from './rows/routes.ts';
import { authorizeRoutes } from './verification/authorize-routes.ts';
import { batchRoutes } from './verification/batch-routes.ts';
import { changeRoutes } from './verification/change-routes.ts';
import { introspectionRoutes, verificationRoutes } from './verification/routes.ts';
import { selfRoutes } from './verification/self-routes.ts';
import type { VerificationState } from './verification/state.ts';
import { usageRoutes } from './verification/usage-routes.ts';
import { createVerifier } from './verification/verifier.ts';
import type { WebhookClient } from './webhooks/connector.ts';
import { webhookDeliveryRoutes } from './webhooks/delivery-routes.ts';
import { webhookRoutes } from './webhooks/routes.ts';

export interface AppDeps {
  logger: FastifyBaseLogger;
  transactor: Transactor;
  crypto: TokenCrypto;
  verification: Pick<VerificationState, 'clock' | 'feed' | 'records' | 'limits' | 'usage'>;
  webhookClient: Pick<WebhookClient, 'checkUrl'>;
  limits: EndpointLimits;
  undoWindowSeconds: number;
  retentionSeconds: number;
  trustProxy: string[] | false;
  version: string;
  isStopping?: () => boolean;
  receiveTimeoutMs?: number;
  /** Clients at once that follow changes. */
  changeStreams?: number;
}

/** The whole service but its process: every registration, in order. */
export async function buildApp(deps: AppDeps): Promise<FastifyInstance> {
  const { transactor, crypto, undoWindowSeconds, retentionSeconds, isStopping = () => false } = deps;
  const { clock, feed, records, limits, usage } = deps.verification;
  const { db } = transactor;
  const tokenPrefix = crypto.prefix;
  const attempts = createAttemptLimit();
  const secretCheckFor = (table: 'api_keys' | 'access_tokens') =>
    createSecretCheck({
      crypto,
      attempts,
      retag: (id, tag) =>
        replaceTag(db, table, id, tag).catch((err: unknown) => {
          deps.logger.warn({ err, id }, 'A tag that was made anew could not be kept.');
        }),
    });
  const checkKey = secretCheckFor('api_keys');
  const authenticator = createAuthenticator({
    records,
    clock,
    prefix: tokenPrefix,
    checkKey,
    checkAccessToken: secretCheckFor('access_tokens'),
  });
  const verifier = createVerifier({
    apiKeys: records.apiKeys,
    clock,
    prefix: tokenPrefix,
    checkSecret: checkKey,
    limits,
    usage,
  });
  const mint = createKeyMint(crypto);

  const app = fastify(serverOptions(deps));
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  await app.register(strictRoutes, { tokenPrefix });
  await app.register(jsonBody);
  await app.register(errorHandler, { translate: toProblem });
  await app.register(endpointLimits, deps.limits);
  await app.register(guard, { authenticator, organizationExists: (id) => organizationExists(db, id) });
  await app.register(idempotency, {
    transactor,
    reopener: createReopener({ transactor, keyring: crypto.keyring }),
  });
  await app.register(requestLog);
  await app.register(openApi, { version: deps.version });
  await app.register(problemRoutes);
  await app.register(metricsRoutes, { metrics: createMetrics({ ...transactor, logger: deps.logger }) });
  await app.register(healthRoutes, { checkReadiness: () => requireCurrentSchema(db), isStopping });

  const v1 = { prefix: '/v1' };
  const windows = { undoWindowSeconds, retentionSeconds };
  await app.register(rowRoutes, { ...v1, transactor, tokenPrefix, undoWindowSeconds });
  await app.register(keyRoutes, { ...v1, transactor, mint, keyring: crypto.keyring, tokenPrefix, undoWindowSeconds });
  await app.register(keyLifecycleRoutes, { ...v1, mint, tokenPrefix, ...windows });
  await app.register(keyViewersRoutes, { ...v1, db });
  await app.register(partnerRoutes, { ...v1, transactor, mint, tokenPrefix, ...windows });
  await app.register(recoveryRoutes, { ...v1, transactor, ...windows });
  await app.register(webhookRoutes, { ...v1, transactor, keyring: crypto.keyring, client: deps.webhookClient });
  await app.register(webhookDeliveryRoutes, { ...v1, transactor });
  await app.register(historyRoutes, { ...v1, db });
  await app.register(organizationRoutes, { ...v1, transactor });
  await app.register(operatorOrganizationRoutes, { ...v1, transactor });
  await app.register(accessTokenRoutes, { ...v1, transactor, crypto });
  await app.register(verificationRoutes, { ...v1, verifier });
  await app.register(batchRoutes, { ...v1, verifier });
  await app.register(changeRoutes, { ...v1, feed, clock, records, streamsAtOnce: deps.changeStreams ?? 1_000 });
  await app.register(authorizeRoutes, { ...v1, verifier });
  await app.register(introspectionRoutes, { ...v1, verifier });
  await app.register(selfRoutes, { ...v1, limits, usage });
  await app.register(usageRoutes, { ...v1, transactor });
  return app;
}
