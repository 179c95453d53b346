import type { FastifyBaseLogger } from 'fastify';
import { LRUCache } from 'lru-cache';
import type { DatabaseClock } from '../database/clock.ts';
import { isRejection } from '../database/pg-error.ts';
import { type Transactor, transact } from '../database/work.ts';
import type { Actor } from '../domain/actor.ts';
import { record } from '../history/record.ts';
import { type BatchWriter, createBatchWriter } from '../lib/batch-writer.ts';
import { hourMs, startOfPeriod } from '../lib/durations.ts';
import { clientAddress } from '../lib/ip-address.ts';
import { notLater } from '../lib/past.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import { type DeletedUse, insertDeletedUses, nameOfUse } from './usage-store.ts';

/** Records in history, once for each key and hour, that a deleted key is still being presented. */
export interface DeletedUses extends Pick<BatchWriter<string, DeletedUse>, 'flush' | 'close'> {
  /** @param ip the client's address as the caller gave it */
  note(key: ApiKeyRecord, ip: string | null | undefined): void;
}

interface DeletedUsesOptions {
  transactor: Transactor;
  clock: DatabaseClock;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

const usesInTransaction = 100;

/** Beyond this a use is not noted; one that goes on is, as soon as there is room. */
const usesHeld = 10_000;

const verificationActor: Actor = { type: 'system', id: 'verification', name: 'verification', email: null };

export function createDeletedUses({ transactor, clock, logger }: DeletedUsesOptions): DeletedUses {
  /** What is on record already, or was rejected: presented again within the hour, it costs nothing. */
  const recorded = new LRUCache<string, true>({ max: usesHeld });

  const remember = (use: DeletedUse) => void recorded.set(nameOfUse(use), true);
  const writer = createBatchWriter<string, DeletedUse>({
    name: 'Uses of deleted keys',
    write,
    batchSize: usesInTransaction,
    capacity: usesHeld,
    // Each batch is one transaction in one chain.
    groupOf: ({ organizationId }) => organizationId,
    isRejection,
    onRejected: remember,
    describe: ({ organizationId, keyId }) => ({ organizationId, keyId }),
    logger,
  });

  async function write(uses: DeletedUse[]): Promise<void> {
    const [first] = uses;
    if (first === undefined) return;
    const by = { actor: verificationActor, organizationId: first.organizationId, request: null };
    await transact(transactor, by, async (work) => {
      // Another replica may have been first: then the event is there already.
      for (const { keyId, partnerId, ip, presentedAt } of await insertDeletedUses(work.tx, uses)) {
        const details = { ip, presentedAt: notLater(presentedAt, work.now).toISOString() };
        record(work, { action: 'key.used_after_deletion', keyId, partnerId, details });
      }
    });
    for (const use of uses) remember(use);
  }

  return {
    note(key, ip) {
      const nowMs = clock.nowMs();
      const use: DeletedUse = {
        organizationId: key.organization_id,
        partnerId: key.partner_id,
        keyId: key.id,
        hour: new Date(startOfPeriod(nowMs, hourMs)),
        presentedAt: new Date(nowMs),
        ip: clientAddress(ip) ?? null,
      };
      const name = nameOfUse(use);
      if (!recorded.has(name)) writer.add(name, use);
    },
    flush: writer.flush,
    close: writer.close,
  };
}
