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
  /** Whether the holder of a key may rotate and revoke it. */
  self_service: boolean;
  /** How long a key may live from its creation. Null: without end. */
  max_key_lifetime_seconds: number | null;
  /** How long a key lives that is created without an expiry. Null: as long as it may. */
  default_key_lifetime_seconds: number | null;
  /** After how many days without use a key is suspended. Null: never. */
  idle_suspend_after_days: number | null;
  rate_limit_requests: number;
  rate_limit_window_seconds: number;
  created_at: Date;
  created_by: Json<Actor>;
}
