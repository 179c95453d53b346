import type { Actor } from '../../domain/actor.ts';
import type { KeyId, OrganizationId, PartnerId } from '../../domain/ids.ts';
import type { Permission } from '../../domain/permissions.ts';
import type { Json } from './json.ts';

/** The reasons that a caller can give for a deletion. */
export const givenDeleteReasons = ['unused', 'rotated', 'compromised', 'other'] as const;

export type GivenDeleteReason = (typeof givenDeleteReasons)[number];

/** Why a key was deleted. `owner_request`: its holder revoked it. Latchkey itself sets the last three. */
export type DeleteReason = GivenDeleteReason | 'owner_request' | 'partner_deleted' | 'permission_removed' | 'expired';

/** Where a key's token was made. */
export type KeyOrigin = 'created' | 'imported';

export interface ApiKeysTable {
  id: KeyId;
  organization_id: OrganizationId;
  partner_id: PartnerId | null;
  permission: Permission;
  slot: 1 | 2;
  origin: KeyOrigin;
  name: string | null;
  /** The name without regard to case, for searches. */
  folded_name: string | null;
  /** Null after the key was purged. */
  tag: Buffer | null;
  tag_keyring_id: string | null;
  /** Always null for an imported key, of which Latchkey may know only the SHA-256. */
  argon2id_hash: string | null;
  /** Authenticates the columns that decide about the key (credentials/record-mac.ts). Null after the key was purged. */
  mac: Buffer | null;
  mac_keyring_id: string | null;
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  /** The SHA-256 of an imported key's token, sealed. Null after the key was declared compromised or purged. */
  digest_sealed: Buffer | null;
  digest_keyring_id: string | null;
  /** Null if it is unknown, which only happens for imported keys. */
  last_four: string | null;
  expires_at: Date | null;
  allowed_ips: string[];
  scopes: string[];
  metadata: Json<Record<string, unknown>>;
  /** The key from which this one was rotated. */
  replaces_key_id: KeyId | null;
  /** The first key of this chain of rotations: the limit is counted under its id. Null: this key is the first. */
  limit_bucket_id: KeyId | null;
  rate_limit_requests: number | null;
  rate_limit_window_seconds: number | null;
  created_at: Date;
  created_by: Json<Actor>;
  suspended_at: Date | null;
  suspended_reason: string | null;
  /** When the key was last resumed or restored. */
  resumed_at: Date | null;
  deleted_at: Date | null;
  delete_reason: DeleteReason | null;
  /** After this time, only history and usage contain the key. */
  purged_at: Date | null;
}
