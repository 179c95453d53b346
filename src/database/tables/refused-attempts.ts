import type { ColumnType } from 'kysely';
import type { OrganizationId, RefusalId } from '../../domain/ids.ts';

/** The caller whose requests were rejected, as of the last one. */
export interface RefusedCaller {
  type: 'admin' | 'operator' | 'verifier' | 'api_key';
  id: string;
  name: string | null;
  email: string | null;
}

/** Rejected requests of a known caller within one hour, by operation and reason. Not part of history. */
export interface RefusedAttemptsTable {
  id: RefusalId;
  organization_id: OrganizationId | null;
  hour: Date;
  /** Null, with caller and operation: too many callers in this hour, so the rest are counted together. */
  caller_id: string | null;
  caller: ColumnType<RefusedCaller | null, string | null, string | null>;
  operation: string | null;
  code: string;
  count: number;
  first_at: Date;
  last_at: Date;
  /** Null: not known. */
  last_ip: string | null;
}
