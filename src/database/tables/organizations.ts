import type { Actor } from '../../domain/actor.ts';
import type { OrganizationId } from '../../domain/ids.ts';
import type { Json } from './json.ts';

export type KeyReveal = 'allowed' | 'never';

/** What a report of a leaked key does: nothing but the event, or also a suspension or a deletion as compromised. */
export type LeakResponse = 'notify' | 'suspend' | 'revoke';

export interface OrganizationsTable {
  id: OrganizationId;
  name: string;
  key_reveal: KeyReveal;
  leak_response: LeakResponse;
  rate_limit_requests: number;
  rate_limit_window_seconds: number;
  created_at: Date;
  created_by: Json<Actor>;
}
