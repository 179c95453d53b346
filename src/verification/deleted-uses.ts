import type { FastifyBaseLogger } from 'fastify';
import { LRUCache } from 'lru-cache';
import type { ApiKeyRecord } from '../auth/api-key-record.ts';
import type { Actor } from '../core/actor.ts';
import type { OrganizationId } from '../core/ids.ts';
import type { DatabaseClock } from '../db/clock.ts';
import { isUnavailable } from '../db/pg-error.ts';
import { type Transactor, transact } from '../db/work.ts';
import { record } from '../history/record.ts';
import { clientAddress } from '../lib/ip-address.ts';
import { notLater } from '../lib/past.ts';
import { type DeletedUse, insertDeletedUses, nameOfUse } from './usage-store.ts';

/** Sees to it that history tells, once for each key and hour, that a deleted key is still being presented. */
export interface DeletedUses {
  /** @param ip the client's address as the caller gave it */
  note(key: ApiKeyRecord, ip: string | undefined): void;
  /** Whether there is something to write. */
  isWaiting(): boolean;
  /** Records what was noted, in transactions of bounded size. What fails waits for the next time. */
  flush(): Promise<void>;
}

interface DeletedUsesOptions {
  transactor: Transactor;
  clock: DatabaseClock;
  logger: Pick<FastifyBaseLogger, 'warn'>;
}

const hourMs = 3_600_000;
const usesInTransaction = 100;

/** Beyond this a use is not noted; one that goes on is, as soon as there is room. */
const usesHeld = 10_000;

const verificationActor: Actor = { type: 'system', id: 'verification', name: 'verification', email: null };

export function createDeletedUses({ transactor, clock, logger }: DeletedUsesOptions): DeletedUses {
  const waiting = new Map<string, DeletedUse>();
  /** What is on record already: presented again within the hour, it costs nothing. */
  const recorded = new LRUCache<string, true>({ max: usesHeld });

  async function write(organizationId: OrganizationId, uses: DeletedUse[]): Promise<void> {
    const by = { actor: verificationActor, organizationId, request: null };
    await transact(transactor, by, async (work) => {
      // Another replica may have been first: then the event is there already.
      for (const { keyId, partnerId, ip, presentedAt } of await insertDeletedUses(work.tx, uses)) {
        const details = { ip, presentedAt: notLater(presentedAt, work.now).toISOString() };
        record(work, { action: 'key.used_after_deletion', keyId, partnerId, details });
      }
    });
  }

  return {
    note(key, ip) {
      const nowMs = clock.nowMs();
      const use: DeletedUse = {
        organizationId: key.organization_id,
        partnerId: key.partner_id,
        keyId: key.id,
        hour: new Date(nowMs - (nowMs % hourMs)),
        presentedAt: new Date(nowMs),
        ip: clientAddress(ip) ?? null,
      };
      const name = nameOfUse(use);
      if (recorded.has(name) || waiting.has(name) || waiting.size >= usesHeld) return;
      waiting.set(name, use);
    },
    isWaiting: () => waiting.size > 0,
    async flush() {
      for (const uses of batchesOf([...waiting.values()])) {
        const [first] = uses;
        if (first === undefined) continue;
        try {
          await write(first.organizationId, uses);
        } catch (error) {
          logger.warn({ err: error, waiting: waiting.size }, 'Uses of deleted keys could not be recorded yet.');
          if (isUnavailable(error)) return;
          continue;
        }
        for (const use of uses) {
          waiting.delete(nameOfUse(use));
          recorded.set(nameOfUse(use), true);
        }
      }
    },
  };
}

/** Each of one organization, because each is one transaction in one chain. */
function batchesOf(uses: DeletedUse[]): DeletedUse[][] {
  const byOrganization = new Map<OrganizationId, DeletedUse[]>();
  for (const use of uses) {
    const own = byOrganization.get(use.organizationId);
    if (own === undefined) byOrganization.set(use.organizationId, [use]);
    else own.push(use);
  }
  return [...byOrganization.values()].flatMap((own) =>
    Array.from({ length: Math.ceil(own.length / usesInTransaction) }, (_, index) =>
      own.slice(index * usesInTransaction, (index + 1) * usesInTransaction),
    ),
  );
}
