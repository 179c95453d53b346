import type { FastifyBaseLogger } from 'fastify';
import { addTokenUses, type TokenUse } from '../access-tokens/store.ts';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { isRejection } from '../database/pg-error.ts';
import type { AccessTokenId } from '../domain/ids.ts';
import { type BatchWriter, createBatchWriter } from '../lib/batch-writer.ts';
import { secondMs } from '../lib/durations.ts';

/** Notes in memory, without waiting, when access tokens are accepted, and writes the last time of each every few seconds. */
export interface TokenUses extends Pick<BatchWriter<AccessTokenId, TokenUse>, 'flush' | 'close'> {
  note(id: AccessTokenId): void;
}

interface TokenUsesOptions {
  db: Db;
  clock: DatabaseClock;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

/** `lastUsedAt` of an access token is at most a minute late. A killed process loses the uses since its last flush. */
const flushEveryMs = 5 * secondMs;

const usesPerBatch = 1_000;

/** Access tokens with a pending use; the uses of further ones are dropped. */
const pendingUsesLimit = 20_000;

export function createTokenUses({ db, clock, logger }: TokenUsesOptions): TokenUses {
  const writer = createBatchWriter<AccessTokenId, TokenUse>({
    name: 'Uses of access tokens',
    write: (batch) => addTokenUses(db, batch),
    batchSize: usesPerBatch,
    capacity: pendingUsesLimit,
    merge(waiting, { lastUsedMs }) {
      waiting.lastUsedMs = Math.max(waiting.lastUsedMs, lastUsedMs);
    },
    isRejection,
    describe: ({ id, lastUsedMs }) => ({ id, lastUsedAt: new Date(lastUsedMs) }),
    logger,
    intervalMs: flushEveryMs,
  });
  return {
    note: (id) => void writer.add(id, { id, lastUsedMs: Math.floor(clock.nowMs()) }),
    flush: writer.flush,
    close: writer.close,
  };
}
