import type { KeyId } from '../../domain/ids.ts';

/** Marks that a key's expiry was announced by an event, with the number of days before it. */
export interface ExpiryNoticesTable {
  key_id: KeyId;
  expires_at: Date;
  days_ahead: number;
}
