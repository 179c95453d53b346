import type { FastifyBaseLogger } from 'fastify';
import type { Keyring } from '../crypto/keyring.ts';
import type { TokenHash } from '../crypto/tag.ts';
import type { ChangeFeed } from '../database/change-feed.ts';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { type AccessTokenId, isId, type KeyId } from '../domain/ids.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import { KeyCache } from './key-cache.ts';
import {
  type AccessTokenRecord,
  anyOrganization,
  type ImportedPointer,
  type ImportedPresence,
  loadAccessTokens,
  loadApiKeys,
  loadImportedPointers,
  loadImportedPresence,
} from './record-store.ts';

/** The caches of API keys, access tokens and imported tokens. */
export interface Records {
  apiKeys: KeyCache<KeyId, ApiKeyRecord>;
  accessTokens: KeyCache<AccessTokenId, AccessTokenRecord>;
  /** Which imported key a token belongs to. */
  importedPointers: KeyCache<TokenHash, ImportedPointer>;
  /** Which organizations have imported keys. */
  importedPresence: KeyCache<ImportedPresence['id'], ImportedPresence>;
  /** Whether cached keys can be verified while the database does not answer. */
  canAnswerWithoutDatabase(): boolean;
  /** Removes the records with these ids, which may be hashes of tokens, and those that depend on them. */
  invalidate(ids: Iterable<string>): void;
}

interface RecordsOptions {
  db: Db;
  clock: DatabaseClock;
  feed: ChangeFeed;
  logger: Pick<FastifyBaseLogger, 'error' | 'warn' | 'info'>;
  keyring: Keyring;
  /** The maximum number of API keys in memory. */
  capacity: number;
  staleMs: number;
}

const accessTokensCapacity = 10_000;
const organizationsCapacity = 10_000;

/** Creates the caches and connects them to the change feed. */
export function createRecords({ db, clock, feed, logger, keyring, capacity, staleMs }: RecordsOptions): Records {
  const onForged = (id: string) =>
    logger.error(
      { id },
      'The row of a credential was changed or written without the keyring. The credential is rejected. Find out who wrote to the database.',
    );
  const onHealth = (isHealthy: boolean, cause?: unknown) => {
    if (isHealthy) logger.info('Records can be read from the database again.');
    else
      logger.warn(
        { err: cause },
        `Records cannot be read from the database. Cached records are used for up to ${staleMs} ms.`,
      );
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
    capacity: Math.min(capacity, accessTokensCapacity),
    staleMs,
    feed,
    onHealth,
  });
  const importedPointers = new KeyCache<TokenHash, ImportedPointer>({
    load: (hashes) => loadImportedPointers(db, keyring, hashes),
    dependsOn: ({ keyId }) => [keyId],
    capacity,
    staleMs,
    feed,
    onHealth,
  });
  const importedPresence = new KeyCache<ImportedPresence['id'], ImportedPresence>({
    load: (ids) => loadImportedPresence(db, ids),
    dependsOn: () => [],
    capacity: Math.min(capacity, organizationsCapacity),
    staleMs,
    feed,
    onHealth,
  });
  /** The first import of an organization notifies of the organization, and may be the first of the installation. */
  const onOrganization = (id: string) => {
    if (isId('org', id)) importedPresence.invalidate(anyOrganization);
  };
  feed.subscribe({ changed: onOrganization, restarted: () => undefined });
  return {
    apiKeys,
    accessTokens,
    importedPointers,
    importedPresence,
    canAnswerWithoutDatabase: () => apiKeys.size > 0 && performance.now() - feed.caughtUpAtMs < staleMs,
    invalidate(ids) {
      for (const id of ids) {
        apiKeys.invalidate(id);
        accessTokens.invalidate(id);
        importedPointers.invalidate(id);
        importedPresence.invalidate(id);
        onOrganization(id);
      }
    },
  };
}
