import { pino } from 'pino';
import { buildApp } from './app.ts';
import { generateKeyring, parseKeyring } from './crypto/keyring.ts';
import { createSecretHasher } from './crypto/secret-hash.ts';
import { connect } from './db/client.ts';
import { createDatabaseClock } from './db/clock.ts';
import { createCheckpoints } from './history/checkpoints/signing.ts';
import { openApiText } from './http/openapi.ts';
import { startVerificationState } from './verification/state.ts';
import { packageVersion } from './version.ts';
import { createWebhookClient } from './webhooks/connector.ts';
import { enqueueDeliveries } from './webhooks/enqueue-deliveries.ts';

/** The OpenAPI document as it is committed: the real routes of an app that never meets a database. */
export async function describeApi(): Promise<string> {
  const url = 'postgres://nobody@127.0.0.1:1/nothing';
  const clock = createDatabaseClock();
  const client = connect({ url, poolSize: 1 });
  const logger = pino({ level: 'silent' });
  const keyring = parseKeyring(generateKeyring(new Date()));
  const verification = startVerificationState({
    db: client.db,
    listenUrl: url,
    redisUrl: undefined,
    keyring,
    capacity: 1,
    staleMs: 0,
    clock,
    onAppended: enqueueDeliveries,
    logger,
  });
  const app = await buildApp({
    logger,
    verification,
    pool: client.pool,
    transactor: { db: client.db, clock },
    checkpoints: createCheckpoints({ db: client.db, keyring, logger }),
    crypto: {
      prefix: 'lk',
      keyring,
      hasher: createSecretHasher({ memoryKib: 8, timeCost: 1, parallelism: 1, concurrency: 1, queueLimit: 0 }),
    },
    webhookClient: createWebhookClient({ allowHttp: false, allowedRanges: [] }),
    limits: { callerLimit: 1, addressLimit: 1, revealLimit: 1 },
    undoWindowSeconds: 0,
    retentionSeconds: 0,
    trustProxy: false,
    version: packageVersion(),
  });
  try {
    await app.ready();
    return openApiText(app);
  } finally {
    await app.close();
    await verification.close();
    await client.close();
  }
}
