import type { ColumnType } from 'kysely';
import type { Actor } from '../../domain/actor.ts';
import type { KeyId, OrganizationId, PartnerId, RecoveryRequestId } from '../../domain/ids.ts';
import type { Json } from './json.ts';

export type RecoveryStatus = 'open' | 'approved' | 'declined';

export interface RecoveryRequestsTable {
  id: RecoveryRequestId;
  organization_id: OrganizationId;
  key_id: KeyId | null;
  partner_id: PartnerId | null;
  /** The deletion that the request wants to undo. The request does not apply to a later deletion. */
  subject_deleted_at: Date;
  details: string;
  status: RecoveryStatus;
  respond_by: Date;
  created_at: Date;
  created_by: Json<Actor>;
  answered_at: Date | null;
  answered_by: ColumnType<Actor | null, string | undefined, string>;
  note: string | null;
}
