import type { OrganizationContext, Work } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import { requireOpenWindow } from '../domain/restore-window.ts';
import { record } from '../history/record.ts';
import { methodOf, type Restoring, requireSameDeletion, restoreLockedKey } from '../keys/restore-commands.ts';
import { lockKeysDeletedWithPartner } from '../keys/store.ts';
import { requireDeletedPartner } from './policy.ts';
import { lockPartner, markPartnerRestored, type Partner } from './store.ts';

/**
 * Restores a partner with exactly the keys that were deleted with it, all or nothing. Keys that were deleted before, or
 * declared compromised since, stay deleted.
 * @throws Problem `not_found`, `conflict` (the partner is live), `not_restorable`, `partner_exists`,
 * `external_id_exists`
 */
export async function restorePartner(
  work: Work<OrganizationContext>,
  partnerId: string,
  restoring: Restoring,
): Promise<Partner> {
  const partner = await lockPartner(work.tx, work.by.organizationId, partnerId);
  const deletedAt = requireDeletedPartner(partner);
  const { windows, recovery } = restoring;
  requireOpenWindow(`Partner ${partner.id}`, deletedAt, { method: methodOf(restoring), windows, now: work.now });
  requireSameDeletion(`Partner ${partner.id}`, deletedAt, restoring);
  const keys = await lockKeysDeletedWithPartner(work.tx, partner.id, deletedAt);
  const purged = keys.find((key) => key.purged_at !== null);
  if (purged !== undefined) {
    throw new Problem('not_restorable', `Key ${purged.id} of partner ${partner.id} was already purged.`);
  }
  await markPartnerRestored(work.tx, partner);
  record(work, {
    action: 'partner.restored',
    partnerId: partner.id,
    details: {
      email: partner.email,
      deletedAt: deletedAt.toISOString(),
      recoveryRequestId: recovery?.requestId ?? null,
    },
  });
  // The slots are free: a deleted partner's rows accept no keys.
  for (const key of keys) await restoreLockedKey(work, key, key.slot, restoring);
  return { ...partner, deleted_at: null };
}
