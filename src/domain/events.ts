import type { Actor, RequestFacts } from './actor.ts';
import type { EventId, KeyId, OrganizationId, PartnerId } from './ids.ts';

/** Everything that history can say, in past tense. A closed list: a new act gets its word here first. */
export const historyActions = [
  'organization.created',
  'organization.updated',
  'access_token.created',
  'access_token.deleted',
  'partner.created',
  'partner.updated',
  'partner.deleted',
  'partner.restored',
  'partner.suspended',
  'partner.resumed',
  'key.created',
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
] as const;

export type HistoryAction = (typeof historyActions)[number];

/** What happened; who, when and through which request is the work's. Details never hold a secret. */
export interface EventInput {
  action: HistoryAction;
  keyId?: KeyId | null;
  partnerId?: PartnerId | null;
  details: Record<string, unknown>;
}

/** An event as its canonical text says it: everything but the two hashes of the chain. */
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

/** For an update: each changed field with what it was and what it became. */
export type Changes = Record<string, { from: unknown; to: unknown }>;
