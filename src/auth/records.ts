import type { FastifyBaseLogger } from 'fastify';
import type { AccessTokenId, KeyId } from '../core/ids.ts';
import type { ChangeFeed } from '../db/change-feed.ts';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import { createRecordCache, type RecordCache } from './record-cache.ts';
import { type AccessTokenRecord, type ApiKeyRecord, loadAccessTokens, loadApiKeys } from './store.ts';

/** What decides about credentials, from memory. */
export interface Records {
  apiKeys: RecordCache<KeyId, ApiKeyRecord>;
  accessTokens: RecordCache<AccessTokenId, AccessTokenRecord>;
  /** Forgets what depends on these ids. */
  invalidate(ids: Iterable<string>): void;
}

interface RecordsOptions {
  db: Db;
  clock: DatabaseClock;
  feed: ChangeFeed;
  logger: Pick<FastifyBaseLogger, 'warn' | 'info'>;
  /** API keys, and as many access tokens, kept in memory at most. */
  capacity: number;
  staleMs: number;
}

export function createRecords({ db, clock, feed, logger, capacity, staleMs }: RecordsOptions): Records {
  const onTurn = (isFailing: boolean, cause?: unknown) => {
    if (isFailing) logger.warn({ err: cause }, `Records can not be read; known ones are used for ${staleMs} ms.`);
    else logger.info('Records can be read again.');
  };
  const apiKeys = createRecordCache<KeyId, ApiKeyRecord>({
    load: (ids) => loadApiKeys(db, clock, ids),
    idOf: (key) => key.id,
    dependsOn: (key) => [key.partner_id, key.organization_id],
    capacity,
    staleMs,
    feed,
    onTurn,
  });
  const accessTokens = createRecordCache<AccessTokenId, AccessTokenRecord>({
    load: (ids) => loadAccessTokens(db, clock, ids),
    idOf: (token) => token.id,
    dependsOn: () => [],
    capacity,
    staleMs,
    feed,
    onTurn,
  });
  return {
    apiKeys,
    accessTokens,
    invalidate(ids) {
      for (const id of ids) {
        apiKeys.invalidate(id);
        accessTokens.invalidate(id);
      }
    },
  };
}
