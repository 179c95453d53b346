import type { Actor } from '../../domain/actor.ts';
import type { ClaimId, KeyId, OrganizationId, PartnerId } from '../../domain/ids.ts';
import type { Json } from './json.ts';

export type ClaimEnd = 'redeemed' | 'expired' | 'cancelled';

export interface ClaimsTable {
  id: ClaimId;
  organization_id: OrganizationId;
  partner_id: PartnerId | null;
  key_id: KeyId;
  expires_at: Date;
  created_at: Date;
  created_by: Json<Actor>;
  /** SHA-256 of the code, which is not stored. This and the next four are null after the claim has ended. */
  code_hash: Buffer | null;
  /** The claim's own copy of the key's plaintext. */
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  /** Authenticates the row (credentials/record-mac.ts). */
  mac: Buffer | null;
  mac_keyring_id: string | null;
  ended_at: Date | null;
  end_reason: ClaimEnd | null;
  /** The client address of the redemption. */
  redeemed_from: string | null;
}
