import type { OrganizationContext, Work } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import type { PartnerId, RecoveryRequestId } from '../domain/ids.ts';
import type { RestoreMethod, RestoreWindows } from '../domain/restore-window.ts';
import { record } from '../history/record.ts';
import { lockOrganization } from '../organizations/store.ts';
import { lockPartner, type Partner } from '../partners/store.ts';
import { freeSlot, requireEligibleOwner, requireRestorableKey } from './policy.ts';
import {
  getKeyOwner,
  type Key,
  lockKeyIncludingPurged,
  lockLiveKeysOfRow,
  markKeyRestored,
  type ShownKey,
  withLastUse,
} from './store.ts';

/** How a key or partner is restored. */
export interface Restoring {
  windows: RestoreWindows;
  /** The approved recovery request and the deletion that it is about; null if an admin restores directly. */
  recovery: { requestId: RecoveryRequestId; deletedAt: Date } | null;
}

/** Rejects a restore if the subject was deleted again since the recovery request. @throws Problem `conflict` */
export function requireSameDeletion(subject: string, deletedAt: Date, { recovery }: Restoring): void {
  if (recovery === null || recovery.deletedAt.getTime() === deletedAt.getTime()) return;
  throw new Problem(
    'conflict',
    `${subject} was restored and deleted again at ${deletedAt.toISOString()}. The recovery request is about an earlier deletion.`,
  );
}

/**
 * Restores a deleted key as it was. Locks the owner before the key, like everything that adds a key to a row.
 * @throws Problem `not_found`, `conflict` (the key is live), `not_restorable`, `row_full`
 */
export async function restoreKey(
  work: Work<OrganizationContext>,
  keyId: string,
  restoring: Restoring,
): Promise<ShownKey> {
  const { organizationId } = work.by;
  const { partnerId } = await getKeyOwner(work.tx, organizationId, keyId);
  const partner = await lockOwnerEvenDeleted(work, partnerId);
  const key = await lockKeyIncludingPurged(work.tx, organizationId, keyId);
  const method = methodOf(restoring);
  const deletedAt = requireRestorableKey(key, { method, windows: restoring.windows, now: work.now });
  requireSameDeletion(`Key ${key.id}`, deletedAt, restoring);
  requireEligibleOwner(key, partner);
  const row = { organizationId, partnerId, permission: key.permission };
  const restored = await restoreLockedKey(work, key, freeSlot(await lockLiveKeysOfRow(work.tx, row)), restoring);
  return withLastUse(work.tx, restored);
}

export function methodOf({ recovery }: Restoring): RestoreMethod {
  return recovery === null ? 'undo' : 'recovery';
}

async function lockOwnerEvenDeleted(
  { tx, by }: Work<OrganizationContext>,
  partnerId: PartnerId | null,
): Promise<Partner | null> {
  if (partnerId !== null) return lockPartner(tx, by.organizationId, partnerId);
  await lockOrganization(tx, by.organizationId);
  return null;
}

/** Makes a locked key live again and records it. The slot must be free and the owner locked. */
export async function restoreLockedKey(
  work: Work<OrganizationContext>,
  key: Key,
  slot: 1 | 2,
  { recovery }: Restoring,
): Promise<Key> {
  const restored = await markKeyRestored(work.tx, key.id, { slot, at: work.now });
  record(work, {
    action: 'key.restored',
    keyId: key.id,
    partnerId: key.partner_id,
    details: {
      deletedAt: key.deleted_at?.toISOString() ?? null,
      deleteReason: key.delete_reason,
      recoveryRequestId: recovery?.requestId ?? null,
    },
  });
  return restored;
}
