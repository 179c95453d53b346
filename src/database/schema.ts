import type { ColumnType, Generated } from 'kysely';
import type { Actor, CreatorChain } from '../domain/actor.ts';
import type {
  AccessTokenId,
  DeliveryId,
  KeyId,
  OrganizationId,
  PartnerId,
  RecoveryRequestId,
  WebhookId,
} from '../domain/ids.ts';
import type { Access, Permission } from '../domain/permissions.ts';
import type { RefusedAttemptsTable } from './refused-attempts-table.ts';

/** The tables as the service sees them. `migrations/` makes them; names there and here are the same. */

type Json<Value> = ColumnType<Value, string, string>;

export interface Database {
  installation: InstallationTable;
  keyring_entries: KeyringEntriesTable;
  organizations: OrganizationsTable;
  partners: PartnersTable;
  api_keys: ApiKeysTable;
  access_tokens: AccessTokensTable;
  history: HistoryTable;
  history_heads: HistoryHeadsTable;
  usage_hours: UsageHoursTable;
  usage_days: UsageDaysTable;
  recovery_requests: RecoveryRequestsTable;
  expiry_notices: ExpiryNoticesTable;
  deleted_key_uses: DeletedKeyUsesTable;
  idempotency_keys: IdempotencyKeysTable;
  job_runs: JobRunsTable;
  state_difference_counts: StateDifferenceCountsTable;
  webhook_endpoints: WebhookEndpointsTable;
  webhook_deliveries: WebhookDeliveriesTable;
  webhook_attempts: WebhookAttemptsTable;
  refused_attempts: RefusedAttemptsTable;
}

export interface InstallationTable {
  one: Generated<true>;
  token_prefix: string;
  /** The keyring entry of the first start: the only one that vouches for itself. */
  root_keyring_id: string;
  /** Where the installation was begun, or was moved to by the owner. */
  home: Generated<string>;
  created_at: Generated<Date>;
}

export interface KeyringEntriesTable {
  id: string;
  check_value: Buffer;
  /** By another entry, so that only a holder of the keyring can add one. */
  mac: Buffer;
  mac_keyring_id: string;
  first_seen_at: Generated<Date>;
}

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

export interface PartnersTable {
  id: PartnerId;
  organization_id: OrganizationId;
  email: string;
  name: string | null;
  permissions: Access[];
  rate_limit_requests: number | null;
  rate_limit_window_seconds: number | null;
  created_at: Date;
  created_by: Json<Actor>;
  suspended_at: Date | null;
  deleted_at: Date | null;
}

/** Why a key was deleted; the last two are said by Latchkey itself. */
export type DeleteReason = 'unused' | 'rotated' | 'compromised' | 'other' | 'partner_deleted' | 'permission_removed';

export interface ApiKeysTable {
  id: KeyId;
  organization_id: OrganizationId;
  partner_id: PartnerId | null;
  permission: Permission;
  slot: 1 | 2;
  name: string | null;
  /** Null once the key was purged. */
  tag: Buffer | null;
  tag_keyring_id: string | null;
  argon2id_hash: string | null;
  /** Authenticates what decides about the key; see auth/record-mac.ts. Null once the key was purged. */
  mac: Buffer | null;
  mac_keyring_id: string | null;
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  last_four: string;
  expires_at: Date | null;
  allowed_ips: string[];
  metadata: Json<Record<string, unknown>>;
  /** The key that this one was rotated from. */
  replaces_key_id: KeyId | null;
  /** The first key of the rotations that led to this one, under whose id a limit of its own is counted; null: itself. */
  limit_bucket_id: KeyId | null;
  rate_limit_requests: number | null;
  rate_limit_window_seconds: number | null;
  created_at: Date;
  created_by: Json<Actor>;
  suspended_at: Date | null;
  deleted_at: Date | null;
  delete_reason: DeleteReason | null;
  /** From then on only history and usage remember the key. */
  purged_at: Date | null;
}

export interface AccessTokensTable {
  id: AccessTokenId;
  organization_id: OrganizationId | null;
  role: 'operator' | 'admin' | 'verifier';
  scopes: Access[];
  name: string;
  email: string | null;
  tag: Buffer;
  tag_keyring_id: string;
  argon2id_hash: string;
  mac: Buffer;
  mac_keyring_id: string;
  last_four: string;
  created_at: Date;
  created_by: Json<Actor>;
  creator_chain: Json<CreatorChain>;
  expires_at: Date | null;
  deleted_at: Date | null;
}

/** Read only: rows get in through `history_append()` alone. */
export interface HistoryTable {
  chain: ColumnType<string, never, never>;
  sequence: ColumnType<number, never, never>;
  id: ColumnType<string, never, never>;
  at: ColumnType<Date, never, never>;
  action: ColumnType<string, never, never>;
  actor_id: ColumnType<string, never, never>;
  key_id: ColumnType<string | null, never, never>;
  partner_id: ColumnType<string | null, never, never>;
  canonical: ColumnType<string, never, never>;
  previous_hash: ColumnType<Buffer, never, never>;
  hash: ColumnType<Buffer, never, never>;
}

export interface HistoryHeadsTable {
  chain: ColumnType<string, never, never>;
  sequence: ColumnType<number, never, never>;
  hash: ColumnType<Buffer, never, never>;
  at: ColumnType<Date, never, never>;
}

/** How often a key was asked about within one hour, by how that ended. */
export interface UsageHoursTable {
  organization_id: OrganizationId;
  partner_id: PartnerId | null;
  key_id: KeyId;
  hour: Date;
  allowed: number;
  denied: number;
  rate_limited: number;
  /** Of those denied: because the key was deleted. */
  after_deletion: number;
  /** When the key was last allowed something in this time. */
  last_used_at: Date | null;
}

/** Hours folded into days of UTC. */
export interface UsageDaysTable extends Omit<UsageHoursTable, 'hour'> {
  day: Date;
}

export type RecoveryStatus = 'open' | 'approved' | 'declined';

export interface RecoveryRequestsTable {
  id: RecoveryRequestId;
  organization_id: OrganizationId;
  key_id: KeyId | null;
  partner_id: PartnerId | null;
  /** Which deletion is to be undone: a later one is another matter. */
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

/** That an event has told of a key's expiry, so many days ahead of it. */
export interface ExpiryNoticesTable {
  key_id: KeyId;
  expires_at: Date;
  days_ahead: number;
}

/** That an event has told that a deleted key was presented within this hour. */
export interface DeletedKeyUsesTable {
  key_id: KeyId;
  hour: Date;
}

/** Requests that were done under an `Idempotency-Key`, with their replies. */
export interface IdempotencyKeysTable {
  address: Buffer;
  request_hash: Buffer;
  organization_id: OrganizationId | null;
  /** Ids of what the request made or changed. */
  created: string[];
  has_plaintext: boolean;
  /** The reply; null where it is kept no longer. */
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  created_at: Date;
}

/** What is known of each background job's runs, whichever replica ran it. */
export interface JobRunsTable {
  name: string;
  first_seen_at: Generated<Date>;
  last_started_at: Date | null;
  last_succeeded_at: Date | null;
  last_failed_at: Date | null;
  last_error: string | null;
  /** How many things the last good run did, and how long it took. */
  last_count: number | null;
  last_duration_ms: number | null;
}

/** How many differences between records and their events the last comparison has found, by kind of record. */
export interface StateDifferenceCountsTable {
  kind: string;
  count: number;
  /** When that run ended. */
  at: Date;
}

/** Why an endpoint is sent nothing: somebody asked for it, it answered 410, or it has failed for days. */
export type DisabledReason = 'requested' | 'gone' | 'failing';

export interface WebhookEndpointsTable {
  id: WebhookId;
  organization_id: OrganizationId;
  /** Null: it is told of the whole organization. */
  partner_id: PartnerId | null;
  url: string;
  /** Actions of history, or `*` alone. */
  events: string[];
  description: string | null;
  /** The signing secret; null once the endpoint was deleted. */
  sealed: Buffer | null;
  sealed_keyring_id: string | null;
  /** The secret before, which signs along until a time. */
  previous_sealed: Buffer | null;
  previous_sealed_keyring_id: string | null;
  previous_until: Date | null;
  created_at: Date;
  created_by: Json<Actor>;
  /** Every attempt since then has failed. */
  failing_since: Date | null;
  disabled_at: Date | null;
  disabled_reason: DisabledReason | null;
  deleted_at: Date | null;
}

export type DeliveryStatus = 'pending' | 'delivered' | 'failed';

export interface WebhookDeliveriesTable {
  /** The `webhook-id` of every attempt. */
  id: DeliveryId;
  endpoint_id: WebhookId;
  /** The event's place in its organization's chain. */
  sequence: number;
  action: string;
  /** Over the event and whom it goes to: what was not written with the keyring is not signed and sent. */
  mac: Buffer;
  mac_keyring_id: string;
  status: DeliveryStatus;
  attempts: Generated<number>;
  /** Failed attempts since the delivery was made or asked for again: its place in the schedule. */
  failures: Generated<number>;
  /** When a sender may take it up: the next attempt's time, and while one is under way the end of its lease. */
  due_at: Date;
  /** Somebody is sending it until then at most. */
  leased_until: Date | null;
  created_at: Date;
  finished_at: Date | null;
  /** The trace of the request that caused it, as the header says it. */
  traceparent: string | null;
}

export interface WebhookAttemptsTable {
  delivery_id: DeliveryId;
  number: number;
  at: Date;
  /** The status of the reply; null where none came, and then there is a reason. */
  status: number | null;
  reason: string | null;
  duration_ms: number;
  /** The beginning of the reply's body. */
  reply: string | null;
}
