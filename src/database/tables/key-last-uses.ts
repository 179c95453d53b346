import type { KeyId, OrganizationId } from '../../domain/ids.ts';

/** When each key was last used. A trigger adds the row of a new key. */
export interface KeyLastUsesTable {
  key_id: KeyId;
  organization_id: OrganizationId;
  key_created_at: Date;
  /** The last allowed verification. */
  last_used_at: Date | null;
}
