import type { AccessTokenId, KeyId } from '../../domain/ids.ts';

/** Marks that the expiry of a key or an access token was announced by an event, with the number of days before it. */
export interface ExpiryNoticesTable {
  credential_id: KeyId | AccessTokenId;
  expires_at: Date;
  days_ahead: number;
}
