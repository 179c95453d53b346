import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { type ChainedEvent, historyActions } from '../domain/events.ts';
import { actorView, idView, timestampView } from '../http/schemas.ts';
import { isNestedDeeper } from '../lib/json-text.ts';
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
  const hashes = { previousHash: stored.previous_hash.toString('hex'), hash: stored.hash.toString('hex') };
  const event = readEvent(stored);
  if (event !== undefined) return { ...event, ...hashes };
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
    ...hashes,
  };
}

/** Deeper than any request body that the API accepts, plus the levels that an event adds. */
const deepestLevels = 64;

/** Parses a row's text; undefined if this service would not have written it. */
export function readEvent({ canonical }: Pick<StoredEvent, 'canonical'>): ChainedEvent | undefined {
  if (!fitsExportLine(canonical) || isNestedDeeper(deepestLevels, canonical)) return undefined;
  const value = parseObject(canonical);
  const { success, data } = eventFieldsView.safeParse(value);
  // A difference means that zod dropped unknown members.
  return success && isDeepStrictEqual(data, value) ? (data as ChainedEvent) : undefined;
}

/** Whether a text is a nonempty JSON object on one line, so that an export line can contain it. */
export function fitsExportLine(canonical: string | null): canonical is string {
  if (canonical === null || canonical.includes('\n') || !canonical.startsWith('{"')) return false;
  return canonical.endsWith('}') && parseObject(canonical) !== undefined;
}
