import type { ColumnType } from 'kysely';
import type { OrganizationId, RefusalId } from '../domain/ids.ts';

/** Whose attempts were refused, as it was at the last of them. */
export interface RefusedCaller {
  type: 'admin' | 'operator' | 'verifier' | 'api_key';
  id: string;
  name: string | null;
  email: string | null;
}

/** How often a known caller was refused within one hour, by operation and reason. No part of history. */
export interface RefusedAttemptsTable {
  id: RefusalId;
  organization_id: OrganizationId | null;
  hour: Date;
  /** Null, as are caller and operation: counted together, because there were too many to tell them apart. */
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
