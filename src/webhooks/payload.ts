import type { ChainedEvent, HistoryAction } from '../domain/events.ts';

/** The content of webhook deliveries for organizations and partners. */

/** Events that no endpoint can subscribe to. */
const notSubscribable: readonly HistoryAction[] = [
  'organization.created',
  // Sent only to the endpoint under test.
  'webhook.tested',
  // These belong to the installation's own chain.
  'keyring.rekey_started',
  'keyring.rekeyed',
  'history.archived',
];

/**
 * The events that partners' endpoints can subscribe to. They exclude who revealed a key and why a recovery was
 * requested.
 */
export const partnerActions = [
  'partner.created',
  'partner.updated',
  'partner.deleted',
  'partner.restored',
  'partner.suspended',
  'partner.resumed',
  'key.created',
  'key.imported',
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
] as const satisfies readonly HistoryAction[];

export type Audience = 'organization' | 'partner';

export function audienceOf(partnerId: string | null): Audience {
  return partnerId === null ? 'organization' : 'partner';
}

/** Filters the actions that an endpoint of this audience can subscribe to. */
export function subscribableBy(audience: Audience, actions: readonly HistoryAction[]): HistoryAction[] {
  if (audience === 'organization') return actions.filter((action) => !notSubscribable.includes(action));
  return actions.filter((action) => partnerActions.some((allowed) => allowed === action));
}

/** The body of a delivery. It carries ids and facts only, so that receivers need little trust. */
export interface Payload {
  type: HistoryAction;
  timestamp: string;
  data: {
    eventId: string;
    sequence: number;
    organizationId: string | null;
    keyId: string | null;
    partnerId: string | null;
    actor: { type: string; id: string };
    /** As in history; null if they are too long. */
    details: Record<string, unknown> | null;
    detailsOmitted: boolean;
  };
}

/** Standard Webhooks recommends less than 20 kB. */
const longestPayloadBytes = 19_000;

/** The text that is signed and sent. */
export function payloadFor(audience: Audience, event: ChainedEvent): string {
  const { organizationId, sequence, keyId, partnerId } = event;
  const actor = { type: event.actor.type, id: actorIdFor(audience, event.actor) };
  const details = audience === 'partner' ? withoutInternals(event) : event.details;
  const facts = { eventId: event.id, sequence, organizationId, keyId, partnerId, actor };
  const textWith = (data: Pick<Payload['data'], 'details' | 'detailsOmitted'>) =>
    JSON.stringify({ type: event.action, timestamp: event.at, data: { ...facts, ...data } } satisfies Payload);
  const whole = textWith({ details, detailsOmitted: false });
  return Buffer.byteLength(whole) <= longestPayloadBytes ? whole : textWith({ details: null, detailsOmitted: true });
}

/** Hides from partners who works for the organization. */
function actorIdFor(audience: Audience, { id, issuer }: ChainedEvent['actor']): string {
  return audience === 'partner' && issuer !== undefined ? 'oidc' : id;
}

/** Partners see neither `metadata`, nor why a key was suspended, nor the note of a leak report. */
function withoutInternals({ action, details }: ChainedEvent): Record<string, unknown> {
  const { metadata, note, changes, ...others } = details;
  const { reason, ...unexplained } = others;
  const shared = action === 'key.suspended' ? unexplained : others;
  if (typeof changes !== 'object' || changes === null) return shared;
  const { metadata: _, ...shownChanges } = changes as Record<string, unknown>;
  return { ...shared, changes: shownChanges };
}
