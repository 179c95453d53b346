import type { Actor } from '../../domain/actor.ts';
import type { OrganizationId, PartnerId } from '../../domain/ids.ts';
import type { Access } from '../../domain/permissions.ts';
import type { Json } from './json.ts';

export interface PartnersTable {
  id: PartnerId;
  organization_id: OrganizationId;
  email: string;
  name: string | null;
  external_id: string | null;
  metadata: Json<Record<string, unknown>>;
  permissions: Access[];
  rate_limit_requests: number | null;
  rate_limit_window_seconds: number | null;
  created_at: Date;
  created_by: Json<Actor>;
  suspended_at: Date | null;
  deleted_at: Date | null;
}
