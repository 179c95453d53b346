import { claimMac, type MacCoveredClaim } from '../credentials/record-mac.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { type SealBinding, seal, unseal } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import { tokenHashOf } from '../crypto/tag.ts';
import { mintToken } from '../crypto/token.ts';
import { type ClaimId, idSuffix, newId } from '../domain/ids.ts';
import type { ProtectedColumns } from './store.ts';

/** The id of a claim that is not stored yet, and its code, which is stored only as a hash. */
export interface MintedClaim {
  id: ClaimId;
  code: Secret;
}

export function mintClaim(prefix: string): MintedClaim {
  const id = newId('claim');
  return { id, code: mintToken({ prefix, kind: 'c', idSuffix: idSuffix(id) }) };
}

/** A plain hash: unlike a tag, `latchkey rekey` need not renew it, for which it would need the code. */
export function hashOfCode(code: Secret): Buffer {
  return Buffer.from(tokenHashOf(code), 'latin1');
}

/** The columns that never change while a claim is pending. */
export type ClaimFacts = Omit<MacCoveredClaim, 'sealed' | 'sealed_keyring_id'>;

/** Seals the claim's own copy of a key, and authenticates the row. */
export function protectClaim(keyring: Keyring, facts: ClaimFacts, key: Secret): ProtectedColumns {
  const { sealed, keyringId } = seal(keyring, key, sealBinding(facts));
  return {
    sealed,
    sealed_keyring_id: keyringId,
    ...claimMac(keyring, { ...facts, sealed, sealed_keyring_id: keyringId }),
  };
}

/** @throws SealBroken */
export function openClaim(
  keyring: Keyring,
  claim: ClaimFacts & Pick<ProtectedColumns, 'sealed' | 'sealed_keyring_id'>,
): Secret {
  return unseal(keyring, { sealed: claim.sealed, keyringId: claim.sealed_keyring_id }, sealBinding(claim));
}

/** Binds the copy to its claim, key and expiry, so that it opens for no other claim and no later. */
function sealBinding({ id, organization_id: organizationId, key_id, expires_at }: ClaimFacts): SealBinding {
  return { purpose: 'claim', organizationId, recordId: id, facts: [key_id, expires_at.toISOString()] };
}
