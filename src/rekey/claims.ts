import { sql } from 'kysely';
import type { OpenClaim } from '../claims/commands.ts';
import { openClaim, protectClaim } from '../claims/mint.ts';
import type { ProtectedColumns } from '../claims/store.ts';
import { isAuthenticClaim } from '../credentials/record-mac.ts';
import type { ClaimId } from '../domain/ids.ts';
import type { RekeyedKind } from './rekey.ts';

/** Seals the keys of pending claims under the primary entry, and renews the MACs. Codes still work: only their hash is stored. */
export const claims: RekeyedKind<OpenClaim, { id: ClaimId } & ProtectedColumns> = {
  eventMember: 'claims',
  table: 'claims',
  isStale: (primaryId) =>
    sql`ended_at is null and (sealed_keyring_id <> ${primaryId} or mac_keyring_id <> ${primaryId})`,
  renew(keyring, claim) {
    const { id } = claim;
    if (keyring.get(claim.mac_keyring_id) === undefined) return { id, reason: 'unknown_keyring_entry' };
    // A new MAC would make a row authentic that is not authentic now.
    if (!isAuthenticClaim(keyring, claim)) return { id, reason: 'row_not_authentic' };
    return { id, ...protectClaim(keyring, claim, openClaim(keyring, claim)) };
  },
  async store(tx, renewed) {
    for (const { id, ...columns } of renewed)
      await tx.updateTable('claims').set(columns).where('id', '=', id).execute();
  },
};
