import type { FastifyBaseLogger } from 'fastify';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import { isRejection } from '../database/pg-error.ts';
import { type BatchWriter, createBatchWriter } from '../lib/batch-writer.ts';
import { hourMs, secondMs, startOfPeriod } from '../lib/durations.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import type { DeletedUses } from './deleted-uses.ts';
import { addUsage, type KeyUsage } from './usage-store.ts';

export type UseOutcome = 'allowed' | 'denied' | 'rateLimited';

/** Counts uses of keys in memory, without waiting, and writes the counts every few seconds. */
export interface UsageRecorder extends Pick<BatchWriter<string, KeyUsage>, 'flush' | 'close'> {
  /** @param uses of this outcome */
  add(key: ApiKeyRecord, outcome: UseOutcome, uses?: number): void;
  /** A deleted key was presented, which is recorded in history as well. @param ip the client's address, where it is known */
  addDeleted(key: ApiKeyRecord, ip: string | null | undefined, options: { isCounted: boolean }): void;
}

interface UsageRecorderOptions {
  db: Db;
  clock: DatabaseClock;
  deletedUses: DeletedUses;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

/** With the time that a flush takes, usage shows within 10 s. A killed process loses what was counted since the last flush. */
const flushEveryMs = 5 * secondMs;

/** Small enough that preparing one does not delay the requests of the moment. */
const keysInBatch = 1_000;

/** Keys, each once for each hour, that wait to be written. Beyond it counts are dropped. */
const keysHeld = 200_000;

export function createUsageRecorder({ db, clock, deletedUses, logger }: UsageRecorderOptions): UsageRecorder {
  const writer = createBatchWriter<string, KeyUsage>({
    name: 'Usage',
    write: (batch) => addUsage(db, batch),
    batchSize: keysInBatch,
    capacity: keysHeld,
    merge,
    isRejection,
    describe: ({ keyId, hour, allowed, denied, rateLimited }) => ({
      keyId,
      hour: new Date(hour),
      allowed,
      denied,
      rateLimited,
    }),
    logger,
    intervalMs: flushEveryMs,
  });

  function count(key: ApiKeyRecord, outcome: UseOutcome, uses: number, afterDeletion = 0): void {
    const nowMs = Math.floor(clock.nowMs());
    const hour = startOfPeriod(nowMs, hourMs);
    writer.add(`${key.id} ${hour}`, {
      organizationId: key.organization_id,
      partnerId: key.partner_id,
      keyId: key.id,
      hour,
      allowed: outcome === 'allowed' ? uses : 0,
      denied: outcome === 'denied' ? uses : 0,
      rateLimited: outcome === 'rateLimited' ? uses : 0,
      afterDeletion,
      lastUsedAt: outcome === 'allowed' ? nowMs : null,
    });
  }

  return {
    flush: async () => void (await Promise.all([writer.flush(), deletedUses.flush()])),
    close: async () => void (await Promise.all([writer.close(), deletedUses.close()])),
    add: (key, outcome, uses = 1) => count(key, outcome, uses),
    addDeleted(key, ip, { isCounted }) {
      if (isCounted) count(key, 'denied', 1, 1);
      deletedUses.note(key, ip);
    },
  };
}

function merge(waiting: KeyUsage, more: KeyUsage): void {
  waiting.allowed += more.allowed;
  waiting.denied += more.denied;
  waiting.rateLimited += more.rateLimited;
  waiting.afterDeletion += more.afterDeletion;
  if (more.lastUsedAt !== null) waiting.lastUsedAt = Math.max(waiting.lastUsedAt ?? 0, more.lastUsedAt);
}
