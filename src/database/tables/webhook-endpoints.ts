import type { Actor } from '../../domain/actor.ts';
import type { OrganizationId, PartnerId, WebhookId } from '../../domain/ids.ts';
import type { Json } from './json.ts';

/** Why an endpoint is disabled: on request, because it returned 410, or because it failed for days. */
export type DisabledReason = 'requested' | 'gone' | 'failing';

export interface WebhookEndpointsTable {
  id: WebhookId;
  organization_id: OrganizationId;
  /** Null: the endpoint receives the events of the whole organization. */
  partner_id: PartnerId | null;
  url: string;
  /** Actions of history, or only `*`. */
  events: string[];
  description: string | null;
  /** The signing secret; null after the endpoint was deleted. */
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  /** The previous secret, which also signs until `previous_until`. */
  previous_sealed: Buffer | null;
  previous_sealed_keyring_id: string | null;
  previous_until: Date | null;
  created_at: Date;
  created_by: Json<Actor>;
  /** The first of the attempts that have all failed since. Null: the last attempt succeeded. */
  failing_since: Date | null;
  disabled_at: Date | null;
  disabled_reason: DisabledReason | null;
  deleted_at: Date | null;
}
