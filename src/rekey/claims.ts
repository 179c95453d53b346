import { sql } from 'kysely';
import type { OpenClaim } from '../claims/commands.ts';
import { openClaim, protectClaim } from '../claims/mint.ts';
import type { ProtectedColumns } from '../claims/store.ts';
import { claimMacColumns, isAuthenticClaim } from '../credentials/record-mac.ts';
import type { ClaimId } from '../domain/ids.ts';
import type { RekeyedKind } from './rekey.ts';

const isStale = (primaryId: string) => sql<boolean>`
  (ended_at is null and (sealed_keyring_id <> ${primaryId} or mac_keyring_id <> ${primaryId}))`;

/** Seals the keys of pending claims under the primary entry, and renews the MACs. Codes still work: only their hash is stored. */
export const claims: RekeyedKind<OpenClaim, { id: ClaimId } & ProtectedColumns> = {
  eventMember: 'claims',
  async countStale(db, primaryId, upTo) {
    const { rows } = await sql<{ count: number; lastId: ClaimId | null }>`
      select count(*)::int as count, max(id) as "lastId" from claims
      where ${isStale(primaryId)} and (${upTo}::text is null or id <= ${upTo})`.execute(db);
    return rows[0] ?? { count: 0, lastId: null };
  },
  lockStale: (tx, primaryId, { after, upTo, limit }) =>
    tx
      .selectFrom('claims')
      .select([...claimMacColumns, 'mac', 'mac_keyring_id', 'end_reason'])
      .where(isStale(primaryId))
      .where('id', '>', after as ClaimId)
      .where('id', '<=', upTo as ClaimId)
      .orderBy('id')
      .limit(limit)
      .forNoKeyUpdate()
      .skipLocked()
      .$narrowType<ProtectedColumns & { code_hash: Buffer }>()
      .execute(),
  renew(keyring, claim) {
    const { id } = claim;
    if (keyring.get(claim.mac_keyring_id) === undefined) return { id, reason: 'unknown_keyring_entry' };
    // A new MAC would make a row authentic that is not authentic now.
    if (!isAuthenticClaim(keyring, claim)) return { id, reason: 'row_not_authentic' };
    return { id, ...protectClaim(keyring, claim, openClaim(keyring, claim)) };
  },
  async store(tx, _primaryId, renewed) {
    for (const { id, ...columns } of renewed)
      await tx.updateTable('claims').set(columns).where('id', '=', id).execute();
  },
};
