import { z } from 'zod';
import { type ChainedEvent, historyActions } from '../domain/events.ts';
import { actorView, idView, timestampView } from '../http/schemas.ts';
import { countMembers, isNestedDeeper } from '../lib/json-text.ts';
import { parseObject, type StoredEvent, timeText } from './chain.ts';

export const hashView = z
  .string()
  .meta({ example: '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08' });

export const historyActionSchema = z.enum(historyActions).meta({ id: 'HistoryAction' });

/** The members of an event's canonical text. */
const eventFields = {
  id: idView('event'),
  organizationId: idView('org').nullable().meta({ description: 'Null for events of the installation.' }),
  sequence: z.int().meta({ description: 'Counts from 1 without gaps within the organization.', example: 42 }),
  at: timestampView,
  action: historyActionSchema,
  actor: actorView,
  keyId: idView('key').nullable(),
  partnerId: idView('partner').nullable(),
  request: z
    .object({ id: z.string(), ip: z.string(), userAgent: z.string().nullable() })
    .meta({ id: 'RequestFacts', example: { id: 'r-1', ip: '203.0.113.7', userAgent: 'curl/8.5.0' } })
    .nullable()
    .meta({ description: 'Null if no request caused the event.' }),
  details: z.record(z.string(), z.unknown()).meta({ example: { reason: 'The partner lost it' } }),
};

const eventFieldsView = z.object(eventFields);

export const eventView = z
  .object({ ...eventFields, previousHash: hashView, hash: hashView })
  .meta({ id: 'Event', description: 'hash = SHA-256(previousHash ‖ the RFC 8785 form of all but the two hashes).' });

export const unreadableEventView = z
  .object({
    unreadable: z.boolean().meta({ enum: [true], example: true }),
    id: z.string().meta({ example: 'event_01k9s3v5wqe8n8x4r2m6t7yb0c' }),
    organizationId: eventFields.organizationId,
    sequence: eventFields.sequence,
    at: timestampView.nullable(),
    action: z.string().meta({ example: 'key.revealed' }),
    actor: z
      .object({ id: z.string() })
      .meta({ id: 'UnreadableActor', example: { id: 'token_01k9s3v5wqe8n8x4r2m6t7yb0c' } }),
    keyId: eventFields.keyId,
    partnerId: eventFields.partnerId,
    previousHash: hashView,
    hash: hashView,
  })
  .meta({
    id: 'UnreadableEvent',
    description:
      'An event whose text this version cannot read: it was written by a newer version, or directly into the database. ' +
      'The members show the columns that are stored beside the text.',
  });

export const listedEventView = z.union([eventView, unreadableEventView]).meta({ id: 'ListedEvent' });

export type ListedEventView = z.infer<typeof listedEventView>;

/** Uses the canonical text, because the hash covers it. Never throws, whatever the row contains. */
export function toEventView(stored: StoredEvent): ListedEventView {
  const event = readEvent(stored);
  return event === undefined ? toUnreadableView(stored) : { ...event, ...hashesOf(stored) };
}

/** Shows the columns of a row whose text cannot be read. */
export function toUnreadableView(stored: StoredEvent): z.infer<typeof unreadableEventView> {
  return {
    unreadable: true,
    id: stored.id,
    organizationId: stored.chain.startsWith('org_') ? stored.chain : null,
    sequence: stored.sequence,
    at: timeText(stored.at),
    action: stored.action,
    actor: { id: stored.actor_id },
    keyId: stored.key_id,
    partnerId: stored.partner_id,
    ...hashesOf(stored),
  };
}

function hashesOf({ previous_hash, hash }: Pick<StoredEvent, 'previous_hash' | 'hash'>) {
  return { previousHash: previous_hash.toString('hex'), hash: hash.toString('hex') };
}

/** Deeper than any request body that the API accepts, plus the levels that an event adds. */
const deepestLevels = 64;

/** Parses a row's text; undefined if this service would not have written it. */
export function readEvent({ canonical }: Pick<StoredEvent, 'canonical'>): ChainedEvent | undefined {
  if (!isOneLine(canonical) || isNestedDeeper(deepestLevels, canonical)) return undefined;
  const value = parseObject(canonical);
  const { success, data } = eventFieldsView.safeParse(value);
  // zod drops unknown members and changes nothing else.
  return success && countMembers(data) === countMembers(value) ? (data as ChainedEvent) : undefined;
}

/** Whether a text is a nonempty JSON object on one line, so that an export line can contain it. */
export function fitsExportLine(canonical: string | null): canonical is string {
  return isOneLine(canonical) && parseObject(canonical) !== undefined;
}

function isOneLine(text: string | null): text is string {
  return text?.startsWith('{"') === true && text.endsWith('}') && !text.includes('\n');
}
