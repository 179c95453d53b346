import type { OrganizationId } from '../../domain/ids.ts';

/** Requests that were executed with an `Idempotency-Key`, with their replies. */
export interface IdempotencyKeysTable {
  address: Buffer;
  request_hash: Buffer;
  organization_id: OrganizationId | null;
  /** The ids of the rows that the request created or changed. */
  created: string[];
  has_plaintext: boolean;
  /** The sealed reply; null after it was dropped. */
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  created_at: Date;
}
