import type { OrganizationDoer, Work } from '../db/work.ts';
import { record } from '../history/record.ts';
import { requireLiveKey } from './policy.ts';
import { lockKey, markKeySuspended, type ShownKey, withLastUse } from './store.ts';

/** From the moment of the commit the key is refused everywhere. @throws Problem `not_found`, `already_deleted` */
export function suspendKey(work: Work<OrganizationDoer>, keyId: string): Promise<ShownKey> {
  return changeSuspension(work, keyId, 'key.suspended');
}

/** Takes a suspension back; a key that has expired meanwhile stays so. @throws Problem `not_found`, `already_deleted` */
export function resumeKey(work: Work<OrganizationDoer>, keyId: string): Promise<ShownKey> {
  return changeSuspension(work, keyId, 'key.resumed');
}

async function changeSuspension(
  work: Work<OrganizationDoer>,
  keyId: string,
  action: 'key.suspended' | 'key.resumed',
): Promise<ShownKey> {
  const key = await lockKey(work.tx, work.by.organizationId, keyId);
  requireLiveKey(key);
  const suspends = action === 'key.suspended';
  if (suspends === (key.suspended_at !== null)) return withLastUse(work.tx, key);
  const changed = await markKeySuspended(work.tx, key.id, suspends ? work.now : null);
  const details = suspends ? { suspendedAt: work.now.toISOString() } : {};
  record(work, { action, keyId: key.id, partnerId: key.partner_id, details });
  return withLastUse(work.tx, changed);
}
