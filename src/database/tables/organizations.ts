import type { Actor } from '../../domain/actor.ts';
import type { OrganizationId } from '../../domain/ids.ts';
import type { Json } from './json.ts';

export type KeyReveal = 'allowed' | 'never';

export interface OrganizationsTable {
  id: OrganizationId;
  name: string;
  key_reveal: KeyReveal;
  rate_limit_requests: number;
  rate_limit_window_seconds: number;
  created_at: Date;
  created_by: Json<Actor>;
}
