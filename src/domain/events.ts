import type { Actor, RequestFacts } from './actor.ts';
import type { EventId, KeyId, OrganizationId, PartnerId } from './ids.ts';

/** All actions that history can record, in past tense. To record a new action, add it here first. */
export const historyActions = [
  'organization.created',
  'organization.updated',
  'access_token.created',
  'access_token.deleted',
  'access_token.expiry_announced',
  'partner.created',
  'partner.updated',
  'partner.deleted',
  'partner.restored',
  'partner.suspended',
  'partner.resumed',
  'key.created',
  'key.imported',
  'key.revealed',
  'key.updated',
  'key.rotated',
  'key.suspended',
  'key.resumed',
  'key.deleted',
  'key.restored',
  'key.purged',
  'key.used_after_deletion',
  'key.expiry_announced',
  'key.idle_announced',
  'key.claimed',
  'claim.created',
  'claim.expired',
  'claim.cancelled',
  'key.leak_reported',
  'rate_limit.updated',
  'recovery.requested',
  'recovery.approved',
  'recovery.declined',
  'webhook.created',
  'webhook.updated',
  'webhook.deleted',
  'webhook.enabled',
  'webhook.disabled',
  'webhook.secret_rotated',
  'webhook.tested',
  'webhook.redelivered',
  'keyring.rekey_started',
  'keyring.rekeyed',
  'history.archived',
] as const;

export type HistoryAction = (typeof historyActions)[number];

/** What happened. Actor, time and request come from the transaction. `details` never contain a secret. */
export interface EventInput {
  action: HistoryAction;
  keyId?: KeyId | null;
  partnerId?: PartnerId | null;
  details: Record<string, unknown>;
}

/** An event as in its canonical text: everything but the two hashes of the chain. */
export interface ChainedEvent {
  id: EventId;
  organizationId: OrganizationId | null;
  /** Gapless within the chain, from 1. */
  sequence: number;
  /** RFC 3339, UTC, milliseconds. */
  at: string;
  action: HistoryAction;
  actor: Actor;
  keyId: KeyId | null;
  partnerId: PartnerId | null;
  request: RequestFacts | null;
  details: Record<string, unknown>;
}

/** For an update: the old and the new value of each changed field. */
export type Changes = Record<string, { from: unknown; to: unknown }>;
