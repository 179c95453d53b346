import { workInEach } from '../database/batches.ts';
import { currentTime } from '../database/credential.ts';
import { type OrganizationContext, type Transactor, transact, type Work } from '../database/work.ts';
import { systemActor } from '../domain/actor.ts';
import type { KeyId, OrganizationId } from '../domain/ids.ts';
import { record } from '../history/record.ts';
import { chunksOf, inBatches, pagesOf } from '../lib/batches.ts';
import { getOrganization, lockOrganizationShared } from '../organizations/store.ts';
import { setKeysSuspended } from './commands.ts';
import { idleTimesAt, suspensionDue } from './idle-policy.ts';
import {
  deleteVoidIdleNotices,
  examineKeys,
  type IdleKey,
  idleReason,
  lockIdleKeys,
  markIdleAnnounced,
  organizationsThatSuspendIdle,
} from './idle-store.ts';

/** Keys that one query examines. */
const examinedAtOnce = 1_000;

/** Keys per transaction, which holds the lock on the chain's head while it records them. */
const changedAtOnce = 100;

const voidNoticesAtOnce = 1_000;

const actor = systemActor('suspend_idle_keys');

interface IdleJob {
  transactor: Transactor;
  signal?: AbortSignal;
}

/**
 * Announces that keys without use will be suspended, once for each time without use, and suspends them when that time
 * and the notice are over. May run twice, or several times at once.
 * @returns how many keys were announced or suspended
 */
export async function suspendIdleKeys({ transactor, signal }: IdleJob): Promise<number> {
  const now = await currentTime(transactor.db, transactor.clock);
  await inBatches(voidNoticesAtOnce, (count) => deleteVoidIdleNotices(transactor.db, now, count), signal);
  return workInEach(await organizationsThatSuspendIdle(transactor.db), (id) =>
    suspendIdleIn(id, { transactor, ...(signal && { signal }) }),
  );
}

async function suspendIdleIn(organizationId: OrganizationId, { transactor, signal }: IdleJob): Promise<number> {
  const { db, clock } = transactor;
  const { idle_suspend_after_days: days } = await getOrganization(db, organizationId);
  if (days === null) return 0;
  const now = await currentTime(db, clock);
  const times = idleTimesAt(now, days);
  const by = { actor, organizationId, request: null };
  let total = 0;
  const pages = pagesOf(async (last: { id: KeyId } | undefined) =>
    signal?.aborted === true
      ? []
      : examineKeys(db, organizationId, { times, now, after: last?.id, limit: examinedAtOnce }),
  );
  for await (const page of pages) {
    const due = page.filter(({ step }) => step !== null).map(({ id }) => id);
    for (const ids of chunksOf(due, changedAtOnce)) {
      if (signal?.aborted === true) return total;
      total += await transact(transactor, by, (work) => handleIdleKeys(work, ids));
    }
  }
  return total;
}

/** Examines the keys again under locks: one may have been used or resumed, and the policy may have changed. */
async function handleIdleKeys(work: Work<OrganizationContext>, ids: readonly KeyId[]): Promise<number> {
  const { tx, now } = work;
  const { organizationId } = work.by;
  const { idle_suspend_after_days: days } = await lockOrganizationShared(tx, organizationId);
  if (days === null) return 0;
  const keys = await lockIdleKeys(tx, organizationId, { ids, times: idleTimesAt(now, days), now });
  const announced = keys.filter(({ step }) => step === 'announce');
  if (announced.length > 0) await announce(work, announced, days);
  const suspended = keys.filter(({ step }) => step === 'suspend');
  if (suspended.length > 0) await setKeysSuspended(work, suspended, { isSuspended: true, reason: idleReason });
  return announced.length + suspended.length;
}

async function announce(work: Work<OrganizationContext>, keys: readonly IdleKey[], days: number): Promise<void> {
  await markIdleAnnounced(work.tx, keys, work.now);
  for (const { id, partner_id, idle_since: idleSince } of keys) {
    const suspendAt = suspensionDue(idleSince, work.now, days).toISOString();
    const details = { idleSince: idleSince.toISOString(), suspendAt };
    record(work, { action: 'key.idle_announced', keyId: id, partnerId: partner_id, details });
  }
}
