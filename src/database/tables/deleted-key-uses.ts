import type { KeyId } from '../../domain/ids.ts';

/** Marks that an event was recorded because a deleted key was used within this hour. */
export interface DeletedKeyUsesTable {
  key_id: KeyId;
  hour: Date;
}
