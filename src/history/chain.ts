import { createHash } from 'node:crypto';
import { canonicalJson } from '../domain/canonical-json.ts';
import type { ChainedEvent } from '../domain/events.ts';
import type { OrganizationId } from '../domain/ids.ts';

/**
 * The chain: `hash = SHA-256(previousHash ‖ canonical)`, where canonical is the event in RFC 8785 form without the two
 * hashes, hashes are 32 raw bytes, and the first previousHash is 32 zero bytes. `history_append()` in the database
 * computes the same over the same bytes.
 */

export const firstPreviousHash = Buffer.alloc(32);

/** The chain of acts that belong to no organization. */
export const installationChain = 'installation';

export function chainOf(organizationId: OrganizationId | null): string {
  return organizationId ?? installationChain;
}

/** The event's canonical text: JSON by RFC 8785. */
export function toCanonical(event: ChainedEvent): string {
  return canonicalJson(event);
}

export function chainHash(previousHash: Buffer, canonical: string): Buffer {
  return createHash('sha256').update(previousHash).update(canonical, 'utf8').digest();
}

/** What a chain is made of. */
export interface Link {
  /** The event's text: exactly the bytes that are hashed. */
  canonical: string;
  previous_hash: Buffer;
  hash: Buffer;
}

/** A stored row of history: the link, and the columns that only serve filters. */
export interface StoredEvent extends Omit<Link, 'canonical'> {
  /** Null where it is longer than any event: then it was not read. */
  canonical: string | null;
  chain: string;
  sequence: number;
  id: string;
  at: Date;
  action: string;
  actor_id: string;
  key_id: string | null;
  partner_id: string | null;
}

/** `history_append()` takes no longer ones. */
export const longestEventBytes = 131_072;

/** Where a link has to stand. */
export interface Place {
  chain: string;
  sequence: number;
  /** The hash of the event before, or 32 zero bytes; undefined where that event is missing. */
  previousHash: Buffer | undefined;
}

/** What keeps a link from its place, in words for people; undefined where it belongs there. */
export function flawOfLink(link: Link, place: Place): string | undefined {
  return flawOf(parseEvent(link.canonical), link, place);
}

/** The same for a row, whose columns must say what its text says. */
export function flawOfRow(row: StoredEvent, place: Place): string | undefined {
  const { canonical, previous_hash, hash } = row;
  if (canonical === null) return `its text is longer than ${longestEventBytes} bytes`;
  const event = parseEvent(canonical);
  const flaw = flawOf(event, { canonical, previous_hash, hash }, place);
  if (flaw !== undefined || event === undefined) return flaw;
  return columnsAgree(event, row) ? undefined : 'its columns say something else than its text';
}

function flawOf(event: UncheckedEvent | undefined, link: Link, place: Place): string | undefined {
  const { chain, sequence } = place;
  if (event === undefined) return 'its text is not JSON by RFC 8785';
  if (event.sequence !== sequence)
    return `an event that says it is number ${String(event.sequence)} stands in its place`;
  if ((event.organizationId ?? installationChain) !== chain) return 'it belongs to another organization';
  const previousHash = place.previousHash ?? link.previous_hash;
  if (!link.previous_hash.equals(previousHash)) return 'it does not follow the event before it';
  if (!link.hash.equals(chainHash(previousHash, link.canonical))) return 'its text is not the one that was hashed';
  return undefined;
}

function columnsAgree(event: UncheckedEvent, row: StoredEvent): boolean {
  return (
    (event.organizationId ?? installationChain) === row.chain &&
    event.sequence === row.sequence &&
    event.id === row.id &&
    event.at === timeText(row.at) &&
    event.action === row.action &&
    (event.actor as { id?: unknown } | null | undefined)?.id === row.actor_id &&
    event.keyId === row.key_id &&
    event.partnerId === row.partner_id
  );
}

/** By RFC 3339; null where it has no form for the time, such as for `infinity`, which pg reads as a number. */
export function timeText(time: unknown): string | null {
  const isShown = time instanceof Date && time.getUTCFullYear() >= 0 && time.getUTCFullYear() <= 9_999;
  return isShown ? time.toISOString() : null;
}

/** An event's members, whatever they are: somebody may have written the row by hand. */
export type UncheckedEvent = Partial<Record<keyof ChainedEvent, unknown>>;

/** Undefined where the text is not an object in canonical form. */
export function parseEvent(canonical: string): UncheckedEvent | undefined {
  try {
    const value = parseObject(canonical);
    return value !== undefined && canonicalJson(value) === canonical ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Undefined where the text is not a JSON object. */
export function parseObject(text: string): UncheckedEvent | undefined {
  try {
    const value: unknown = JSON.parse(text);
    const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
    return isObject ? value : undefined;
  } catch {
    return undefined;
  }
}
