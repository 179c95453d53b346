import type { FastifyBaseLogger } from 'fastify';
import type { Keyring } from '../crypto/keyring.ts';
import type { ChangeFeed } from '../database/change-feed.ts';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import type { AccessTokenId, KeyId } from '../domain/ids.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import { KeyCache } from './key-cache.ts';
import { type AccessTokenRecord, loadAccessTokens, loadApiKeys } from './record-store.ts';

/** What decides about credentials, from memory. */
export interface Records {
  apiKeys: KeyCache<KeyId, ApiKeyRecord>;
  accessTokens: KeyCache<AccessTokenId, AccessTokenRecord>;
  /** Whether known credentials may be answered for now without the database. */
  canBeUsedAlone(): boolean;
  /** Forgets what depends on these ids. */
  invalidate(ids: Iterable<string>): void;
}

interface RecordsOptions {
  db: Db;
  clock: DatabaseClock;
  feed: ChangeFeed;
  logger: Pick<FastifyBaseLogger, 'error' | 'warn' | 'info'>;
  keyring: Keyring;
  /** API keys kept in memory at most. */
  capacity: number;
  staleMs: number;
}

/** Access tokens kept in memory at most. */
const tokensKept = 10_000;

export function createRecords({ db, clock, feed, logger, keyring, capacity, staleMs }: RecordsOptions): Records {
  const onForged = (id: string) =>
    logger.error({ id }, 'The row of a credential was changed or written without the keyring. It is not accepted.');
  const onHealth = (isHealthy: boolean, cause?: unknown) => {
    if (isHealthy) logger.info('Records can be read again.');
    else logger.warn({ err: cause }, `Records cannot be read; known ones are used for ${staleMs} ms.`);
  };
  const apiKeys = new KeyCache<KeyId, ApiKeyRecord>({
    load: (ids) => loadApiKeys(db, clock, ids, { keyring, onForged }),
    dependsOn: (key) => [key.partner_id, key.organization_id],
    capacity,
    staleMs,
    feed,
    onHealth,
  });
  const accessTokens = new KeyCache<AccessTokenId, AccessTokenRecord>({
    load: (ids) => loadAccessTokens(db, clock, ids, { keyring, onForged }),
    dependsOn: () => [],
    capacity: Math.min(capacity, tokensKept),
    staleMs,
    feed,
    onHealth,
  });
  return {
    apiKeys,
    accessTokens,
    canBeUsedAlone: () => apiKeys.size > 0 && performance.now() - feed.caughtUpAtMs < staleMs,
    invalidate(ids) {
      for (const id of ids) {
        apiKeys.invalidate(id);
        accessTokens.invalidate(id);
      }
    },
  };
}
