import type { OrganizationId } from '../../domain/ids.ts';

/** Requests that were executed with an `Idempotency-Key`, with their replies. */
export interface IdempotencyKeysTable {
  address: Buffer;
  /** Authenticates query and body under the keyring: a body may contain a plaintext, so a bare hash could be guessed. */
  request_mac: Buffer;
  request_mac_keyring_id: string;
  organization_id: OrganizationId | null;
  /** The ids of the rows that the request created or changed. */
  created: string[];
  has_plaintext: boolean;
  /** The sealed reply; null after it was dropped. */
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  created_at: Date;
}
