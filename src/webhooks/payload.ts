import type { ChainedEvent, HistoryAction } from '../domain/events.ts';

/** What webhooks are told of, to whom, and in which words. */

/** An organization's own endpoints may be told of all in its chain that can happen once it has an endpoint. */
const neverAnnounced: readonly HistoryAction[] = [
  'organization.created',
  // Said to the one endpoint that is tested, whatever it has asked for.
  'webhook.tested',
  // In the installation's own chain.
  'keyring.rekey_started',
  'keyring.rekeyed',
];

/** The events that a partner's endpoint may get: neither who revealed a key nor why a recovery was asked for. */
export const partnerActions = [
  'partner.created',
  'partner.updated',
  'partner.deleted',
  'partner.restored',
  'partner.suspended',
  'partner.resumed',
  'key.created',
  'key.updated',
  'key.rotated',
  'key.suspended',
  'key.resumed',
  'key.deleted',
  'key.restored',
  'key.purged',
  'key.used_after_deletion',
  'key.expiry_announced',
] as const satisfies readonly HistoryAction[];

export type Audience = 'organization' | 'partner';

/** @param partnerId of the endpoint */
export function audienceOf(partnerId: string | null): Audience {
  return partnerId === null ? 'organization' : 'partner';
}

/** Which actions an endpoint can ask for. */
export function announcedTo(audience: Audience, actions: readonly HistoryAction[]): HistoryAction[] {
  if (audience === 'organization') return actions.filter((action) => !neverAnnounced.includes(action));
  return actions.filter((action) => partnerActions.some((allowed) => allowed === action));
}

/** The body of a delivery: thin, so that nobody has to trust it with more than ids and facts. */
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
    /** As history has them; null where they are too long. */
    details: Record<string, unknown> | null;
    detailsOmitted: boolean;
  };
}

/** Standard Webhooks asks for less than 20 kB. */
const longestPayloadBytes = 19_000;

/** @returns the text that is signed and sent, of less than 20 kB */
export function payloadFor(audience: Audience, event: ChainedEvent): string {
  const { organizationId, sequence, keyId, partnerId } = event;
  const actor = { type: event.actor.type, id: actorIdFor(audience, event.actor) };
  const details = audience === 'partner' ? withoutInternals(event.details) : event.details;
  const facts = { eventId: event.id, sequence, organizationId, keyId, partnerId, actor };
  const textWith = (data: Pick<Payload['data'], 'details' | 'detailsOmitted'>) =>
    JSON.stringify({ type: event.action, timestamp: event.at, data: { ...facts, ...data } } satisfies Payload);
  const whole = textWith({ details, detailsOmitted: false });
  return Buffer.byteLength(whole) <= longestPayloadBytes ? whole : textWith({ details: null, detailsOmitted: true });
}

/** Who works for the organization, and how it logs in, is no matter of its partners. */
function actorIdFor(audience: Audience, { id, issuer }: ChainedEvent['actor']): string {
  return audience === 'partner' && issuer !== undefined ? 'oidc' : id;
}

/** `metadata` is what the organization tells its backends about a key; the partner does not get to see it. */
function withoutInternals(details: Record<string, unknown>): Record<string, unknown> {
  const { metadata, changes, ...told } = details;
  if (typeof changes !== 'object' || changes === null) return told;
  const { metadata: _, ...others } = changes as Record<string, unknown>;
  return { ...told, changes: others };
}
