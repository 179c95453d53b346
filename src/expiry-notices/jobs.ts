import { workInBatches } from '../database/batches.ts';
import { currentTime } from '../database/credential.ts';
import type { Transactor } from '../database/work.ts';
import { systemActor } from '../domain/actor.ts';
import type { EventInput } from '../domain/events.ts';
import { record } from '../history/record.ts';
import { dayMs } from '../lib/durations.ts';
import {
  deleteExpiryNotices,
  type Expiring,
  type ExpiringTable,
  insertExpiryNotices,
  lockExpiring,
  organizationsWithExpiries,
} from './store.ts';

/** Rows per transaction. The transaction holds the lock on the chain's head while it records them. */
const batchSize = 100;

const actor = systemActor('announce_expiries');

interface ExpiryJob {
  transactor: Transactor;
  signal?: AbortSignal;
}

type Times = Record<'expiresAt' | 'daysLeft', unknown>;

/**
 * Records that live keys and access tokens expire in 7 days and in 1 day, once per credential and expiry. A late notice,
 * such as for a key that lives one hour, is recorded once with the remaining days. May run twice, or several times at once.
 * @returns how many were processed
 */
export async function announceExpiries(job: ExpiryJob): Promise<number> {
  const keys = await announce(job, 'api_keys', ({ id, partner_id }, times) => ({
    action: 'key.expiry_announced',
    keyId: id,
    partnerId: partner_id,
    details: times,
  }));
  const tokens = await announce(job, 'access_tokens', ({ id, role, name, email }, times) => ({
    action: 'access_token.expiry_announced',
    details: { accessTokenId: id, role, name, email, ...times },
  }));
  return keys + tokens;
}

async function announce<Table extends ExpiringTable>(
  { transactor, signal }: ExpiryJob,
  table: Table,
  eventOf: (due: Expiring[Table], times: Times) => EventInput,
): Promise<number> {
  const now = await currentTime(transactor.db, transactor.clock);
  return workInBatches({
    transactor,
    actor,
    organizationIds: await organizationsWithExpiries(transactor.db, table, now),
    batchSize,
    signal,
    async step(work, count) {
      const due = await lockExpiring(work.tx, table, work.by.organizationId, work.now, count);
      for (const notice of await insertExpiryNotices(work.tx, due)) {
        const daysLeft = Math.ceil((notice.expires_at.getTime() - work.now.getTime()) / dayMs);
        record(work, eventOf(notice, { expiresAt: notice.expires_at.toISOString(), daysLeft }));
      }
      return due.length;
    },
  });
}

/** Deletes expiry notices one day after the expiry, when none is due any more. @returns how many */
export async function forgetExpiryNotices({ db, clock }: Pick<Transactor, 'db' | 'clock'>): Promise<number> {
  const now = await currentTime(db, clock);
  return deleteExpiryNotices(db, new Date(now.getTime() - dayMs));
}
