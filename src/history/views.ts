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

/** What an event's canonical text says. */
const said = {
  id: idView('event'),
  organizationId: idView('org').nullable().meta({ description: 'Null: an act of the installation itself.' }),
  sequence: z.int().meta({ description: 'Gapless within the organization, from 1.', example: 42 }),
  at: timestampView,
  action: historyActionSchema,
  actor: actorView,
  keyId: idView('key').nullable(),
  partnerId: idView('partner').nullable(),
  request: z
    .object({ id: z.string(), ip: z.string(), userAgent: z.string().nullable() })
    .meta({ id: 'RequestFacts', example: { id: 'r-1', ip: '203.0.113.7', userAgent: 'curl/8.5.0' } })
    .nullable()
    .meta({ description: 'Null: no request was involved.' }),
  details: z.record(z.string(), z.unknown()).meta({ example: { reason: 'The partner lost it' } }),
};

const saidView = z.object(said);

export const eventView = z
  .object({ ...said, previousHash: hashView, hash: hashView })
  .meta({ id: 'Event', description: 'hash = SHA-256(previousHash ‖ the RFC 8785 form of all but the two hashes).' });

export const unreadableEventView = z
  .object({
    unreadable: z.boolean().meta({ enum: [true], example: true }),
    id: z.string().meta({ example: 'event_01k9s3v5wqe8n8x4r2m6t7yb0c' }),
    organizationId: said.organizationId,
    sequence: said.sequence,
    at: timestampView.nullable(),
    action: z.string().meta({ example: 'key.revealed' }),
    actor: z
      .object({ id: z.string() })
      .meta({ id: 'UnreadableActor', example: { id: 'token_01k9s3v5wqe8n8x4r2m6t7yb0c' } }),
    keyId: said.keyId,
    partnerId: said.partnerId,
    previousHash: hashView,
    hash: hashView,
  })
  .meta({
    id: 'UnreadableEvent',
    description:
      'An event whose text is not one that this service writes, so somebody has written it past the service, or a newer ' +
      'version did. It shows what the columns beside the text say.',
  });

export const listedEventView = z.union([eventView, unreadableEventView]).meta({ id: 'ListedEvent' });

export type ListedEventView = z.infer<typeof listedEventView>;

/** Made from the canonical text, which is what the hash covers. Never throws, whatever the row contains. */
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

/** Deeper than any body that the API takes, with what an event puts around it. */
const deepestLevels = 64;

/** The event that a row's text says; undefined where it is not one that this service writes. */
export function readEvent({ canonical }: Pick<StoredEvent, 'canonical'>): ChainedEvent | undefined {
  if (!isCarriedByLine(canonical) || isNestedDeeper(deepestLevels, canonical)) return undefined;
  const value = parseObject(canonical);
  const { success, data } = saidView.safeParse(value);
  // What zod has left out was not known.
  return success && isDeepStrictEqual(data, value) ? (data as ChainedEvent) : undefined;
}

/** Whether a text is an object on one line, with a member, so that a line of an export can have it. */
export function isCarriedByLine(canonical: string | null): canonical is string {
  if (canonical === null || canonical.includes('\n') || !canonical.startsWith('{"')) return false;
  return canonical.endsWith('}') && parseObject(canonical) !== undefined;
}
