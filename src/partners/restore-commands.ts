import type { OrganizationContext, Work } from '../database/work.ts';
import { Problem } from '../domain/errors.ts';
import { requireOpenWindow } from '../domain/restore-window.ts';
import { record } from '../history/record.ts';
import { putKeyBack, type Restoring, requireSameDeletion, wayOf } from '../keys/restore-commands.ts';
import { lockKeysTakenWithPartner } from '../keys/store.ts';
import { lockPartner, markPartnerRestored, type Partner } from './store.ts';

/**
 * Undoes a deletion: the partner is back with exactly the keys that its deletion took, all of it or nothing. Keys that
 * were deleted before, or declared compromised since, stay deleted.
 * @throws Problem `not_found`, `conflict` (it is live), `not_restorable`, `partner_exists`
 */
export async function restorePartner(
  work: Work<OrganizationContext>,
  partnerId: string,
  restoring: Restoring,
): Promise<Partner> {
  const partner = await lockPartner(work.tx, work.by.organizationId, partnerId);
  const deletedAt = requireDeletedPartner(partner);
  const { windows, recovery } = restoring;
  requireOpenWindow(`Partner ${partner.id}`, deletedAt, { way: wayOf(restoring), windows, now: work.now });
  requireSameDeletion(`Partner ${partner.id}`, deletedAt, restoring);
  const keys = await lockKeysTakenWithPartner(work.tx, partner.id, deletedAt);
  const purged = keys.find((key) => key.purged_at !== null);
  if (purged !== undefined) {
    throw new Problem('not_restorable', `Key ${purged.id} of partner ${partner.id} has been purged already.`);
  }
  await markPartnerRestored(work.tx, partner.id);
  record(work, {
    action: 'partner.restored',
    partnerId: partner.id,
    details: {
      email: partner.email,
      deletedAt: deletedAt.toISOString(),
      recoveryRequestId: recovery?.requestId ?? null,
    },
  });
  // Their places are free: nothing gets into a deleted partner's rows.
  for (const key of keys) await putKeyBack(work, key, key.slot, restoring);
  return { ...partner, deleted_at: null };
}

/** @returns when it was deleted @throws Problem `conflict` */
export function requireDeletedPartner(partner: Partner): Date {
  if (partner.deleted_at === null) throw new Problem('conflict', `Partner ${partner.id} is not deleted.`);
  return partner.deleted_at;
}
