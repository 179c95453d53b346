import type { ClaimEnd } from '../database/tables/claims.ts';
import { Problem } from '../domain/errors.ts';

/** Rules of claims that need no database. */

/** How long a claim can be pending. */
export const ttlRange = { leastSeconds: 60, mostSeconds: 2_592_000, defaultSeconds: 259_200 };

export type ClaimStatus = 'pending' | ClaimEnd;

export const claimStatuses = ['pending', 'redeemed', 'expired', 'cancelled'] as const satisfies readonly ClaimStatus[];

interface ClaimState {
  expires_at: Date;
  end_reason: ClaimEnd | null;
}

/** The status at `now`. A claim has expired from `expires_at` on, even before the job has ended it. */
export function statusOf(claim: ClaimState, now: Date): ClaimStatus {
  return claim.end_reason ?? (claim.expires_at <= now ? 'expired' : 'pending');
}

/** @throws Problem `conflict` */
export function requirePending(claim: ClaimState & { id: string }, now: Date): void {
  const status = statusOf(claim, now);
  if (status !== 'pending')
    throw new Problem('conflict', `Claim ${claim.id} is ${status}. Only a pending claim can be cancelled.`);
}

/** The same for every code that does not work, so that nobody learns whether it existed. */
export function claimGone(): Problem {
  return new Problem('claim_gone', 'This code does not work: it is unknown, was used, has expired or was cancelled.');
}

/** Why a claim was cancelled. */
export type CancelReason = 'requested' | 'replaced' | 'key_deleted';
