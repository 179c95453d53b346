import type { FastifyBaseLogger } from 'fastify';
import { LRUCache } from 'lru-cache';
import type { DatabaseClock } from '../database/clock.ts';
import { isRejection } from '../database/pg-error.ts';
import { type Transactor, transact } from '../database/work.ts';
import { systemActor } from '../domain/actor.ts';
import { record } from '../history/record.ts';
import { type BatchWriter, createBatchWriter } from '../lib/batch-writer.ts';
import { hourMs, startOfPeriod } from '../lib/durations.ts';
import { clientAddress } from '../lib/ip-address.ts';
import { notAfter } from '../lib/past.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import { type DeletedUse, insertDeletedUses, useId } from './usage-store.ts';

/** Records in history, once per key and hour, that a deleted key is still in use. */
export interface DeletedUses extends Pick<BatchWriter<string, DeletedUse>, 'flush' | 'close'> {
  /** @param ip the client's address as the caller gave it */
  note(key: ApiKeyRecord, ip: string | null | undefined): void;
}

interface DeletedUsesOptions {
  transactor: Transactor;
  clock: DatabaseClock;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

const usesPerTransaction = 100;

/** If more uses are pending, further ones are dropped. */
const pendingUsesLimit = 10_000;

const verificationActor = systemActor('verification');

/** Creates the recorder; it writes in batches. */
export function createDeletedUses({ transactor, clock, logger }: DeletedUsesOptions): DeletedUses {
  /** Uses that are recorded or were rejected by the database: they need no further write within the hour. */
  const recorded = new LRUCache<string, true>({ max: pendingUsesLimit });

  const markRecorded = (use: DeletedUse) => void recorded.set(useId(use), true);
  const writer = createBatchWriter<string, DeletedUse>({
    name: 'Uses of deleted keys',
    write,
    batchSize: usesPerTransaction,
    capacity: pendingUsesLimit,
    // A transaction writes to the history chain of one organization only.
    groupOf: ({ organizationId }) => organizationId,
    isRejection,
    onRejected: markRecorded,
    describe: ({ organizationId, keyId }) => ({ organizationId, keyId }),
    logger,
  });

  async function write(uses: DeletedUse[]): Promise<void> {
    const [first] = uses;
    if (first === undefined) return;
    const by = { actor: verificationActor, organizationId: first.organizationId, request: null };
    await transact(transactor, by, async (work) => {
      // Excludes hours that another replica has recorded.
      for (const { keyId, partnerId, ip, presentedAt } of await insertDeletedUses(work.tx, uses)) {
        const details = { ip, presentedAt: notAfter(presentedAt, work.now).toISOString() };
        record(work, { action: 'key.used_after_deletion', keyId, partnerId, details });
      }
    });
    for (const use of uses) markRecorded(use);
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
      const name = useId(use);
      if (!recorded.has(name)) writer.add(name, use);
    },
    flush: writer.flush,
    close: writer.close,
  };
}
