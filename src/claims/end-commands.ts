import type { OrganizationContext, Work } from '../database/work.ts';
import type { KeyId } from '../domain/ids.ts';
import { record } from '../history/record.ts';
import { type CancelReason, requirePending, statusOf } from './policy.ts';
import { type Claim, lockClaim, lockOpenClaimsOfKeys, markEnded } from './store.ts';

// Apart from `commands.ts`, because the deletion of a key ends its claims, and a new claim may create a key.

/** Cancels a claim. Its key does not change. @throws Problem `not_found`, `conflict` (it has ended) */
export async function cancelClaim(work: Work<OrganizationContext>, claimId: string): Promise<Claim> {
  const claim = await lockClaim(work.tx, work.by.organizationId, claimId);
  requirePending(claim, work.now);
  return endClaim(work, claim, 'requested');
}

/** Ends the claims of these keys. The caller has locked the keys. */
export async function endClaimsOfKeys(
  work: Work<OrganizationContext>,
  keyIds: readonly KeyId[],
  reason: CancelReason,
): Promise<void> {
  for (const claim of await lockOpenClaimsOfKeys(work.tx, keyIds)) await endClaim(work, claim, reason);
}

/** Ends a locked claim: it expires if its time is over, otherwise it is cancelled. */
export async function endClaim(work: Work<OrganizationContext>, claim: Claim, reason: CancelReason): Promise<Claim> {
  const hasExpired = statusOf(claim, work.now) === 'expired';
  const ended = await markEnded(work.tx, claim.id, { at: work.now, reason: hasExpired ? 'expired' : 'cancelled' });
  const subject = { keyId: claim.key_id, partnerId: claim.partner_id };
  if (hasExpired) {
    const details = { claimId: claim.id, expiresAt: claim.expires_at.toISOString() };
    record(work, { action: 'claim.expired', ...subject, details });
  } else {
    record(work, { action: 'claim.cancelled', ...subject, details: { claimId: claim.id, reason } });
  }
  return ended;
}
