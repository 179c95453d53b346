import { pino } from 'pino';
import { buildApp } from '../../src/app.ts';
import { generateKeyring, parseKeyring } from '../../src/crypto/keyring.ts';
import { createSecretHasher } from '../../src/crypto/secret-hash.ts';
import { connect } from '../../src/database/client.ts';
import { createDatabaseClock } from '../../src/database/clock.ts';
import { createCheckpoints } from '../../src/history/checkpoints/signing.ts';
import { packageVersion } from '../../src/lib/package.ts';
import { createTallies } from '../../src/metrics/tallies.ts';
import { startVerificationState } from '../../src/verification/state.ts';
import { createWebhookClient } from '../../src/webhooks/connector.ts';
import { enqueueDeliveries } from '../../src/webhooks/enqueue-deliveries.ts';
import { toOpenApi30 } from './openapi-3-0.ts';
import { documentOf } from './operations.ts';

/** The OpenAPI document of the service's routes. Does not connect to a database. */
export async function describeApi(): Promise<string> {
  const url = 'postgres://nobody@127.0.0.1:1/nothing';
  const client = connect({ url, poolSize: 1 });
  const logger = pino({ level: 'silent' });
  const keyring = parseKeyring(generateKeyring(new Date()));
  const transactor = { db: client.db, keyring, clock: createDatabaseClock(), onAppended: enqueueDeliveries };
  const verification = startVerificationState({
    ...transactor,
    listenUrl: url,
    redisUrl: undefined,
    capacity: 1,
    staleMs: 0,
    logger,
  });
  const app = await buildApp({
    logger,
    verification,
    pool: client.pool,
    transactor,
    tallies: createTallies(),
    checkpoints: createCheckpoints({ db: client.db, keyring, logger }),
    crypto: {
      prefix: 'lk',
      keyring,
      hasher: createSecretHasher({ memoryKib: 8, timeCost: 1, parallelism: 1, concurrency: 1, queueLimit: 0 }),
    },
    webhookClient: createWebhookClient({ allowHttp: false, allowedRanges: [] }),
    limits: { callerLimit: 1, addressLimit: 1, revealLimit: 1 },
    githubKeys: { find: async () => undefined },
    undoWindowSeconds: 0,
    retentionSeconds: 0,
    trustProxy: false,
    version: packageVersion(),
  });
  try {
    await app.ready();
    return textOf(await documentOf(app.routeList, packageVersion()));
  } finally {
    await app.close();
    await verification.close();
    await client.close();
  }
}

/** The same document in OpenAPI 3.0.3. */
export function as30(text: string): string {
  return textOf(toOpenApi30(JSON.parse(text)));
}

function textOf(document: unknown): string {
  return `${JSON.stringify(document, null, 2)}\n`;
}
