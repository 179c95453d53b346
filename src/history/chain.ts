import { createHash } from 'node:crypto';
import { canonicalJson } from '../domain/canonical-json.ts';
import type { ChainedEvent } from '../domain/events.ts';
import type { OrganizationId } from '../domain/ids.ts';

/**
 * Hash chain: `hash = SHA-256(previousHash ‖ canonical)`. `canonical` is the event in RFC 8785 form without the two
 * hashes. Hashes are 32 raw bytes; the first previousHash is 32 zero bytes. `history_append()` in the database computes
 * the same.
 */

export const firstPreviousHash = Buffer.alloc(32);

/** The chain of events that belong to no organization. */
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

/** One link of a chain. */
export interface Link {
  /** Exactly the bytes that are hashed. */
  canonical: string;
  previous_hash: Buffer;
  hash: Buffer;
}

/** A stored row of history: the link, and the columns for filters. */
export interface StoredEvent extends Omit<Link, 'canonical'> {
  /** Null if the text exceeds `longestEventBytes`; such a text is not read. */
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

/** The longest text that `history_append()` accepts. */
export const longestEventBytes = 131_072;

/** Where a link belongs. */
export interface Place {
  chain: string;
  sequence: number;
  /** The hash of the previous event, or 32 zero bytes; undefined if that event is missing. */
  previousHash: Buffer | undefined;
}

/** Why a link does not belong at this place, in words; undefined if it does. */
export function flawOfLink(link: Link, place: Place): string | undefined {
  return flawOf(parseEvent(link.canonical), link, place);
}

/** Like `flawOfLink`, for a row whose columns must also match its text. */
export function flawOfRow(row: StoredEvent, place: Place): string | undefined {
  const { canonical, previous_hash, hash } = row;
  if (canonical === null) return `the event's text is longer than ${longestEventBytes} bytes`;
  const event = parseEvent(canonical);
  const flaw = flawOf(event, { canonical, previous_hash, hash }, place);
  if (flaw !== undefined || event === undefined) return flaw;
  return columnsAgree(event, row) ? undefined : "the row's columns differ from the event's text";
}

function flawOf(event: UncheckedEvent | undefined, link: Link, place: Place): string | undefined {
  const { chain, sequence } = place;
  if (event === undefined) return "the event's text is not canonical JSON (RFC 8785)";
  if (event.sequence !== sequence) return `the event found here has sequence number ${String(event.sequence)}`;
  if ((event.organizationId ?? installationChain) !== chain) return 'the event belongs to another organization';
  const previousHash = place.previousHash ?? link.previous_hash;
  if (!link.previous_hash.equals(previousHash)) return 'the event does not follow the previous event';
  if (!link.hash.equals(chainHash(previousHash, link.canonical))) return "the event's text does not match its hash";
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

/** RFC 3339; null for times that it cannot express, such as `infinity`, which pg reads as a number. */
export function timeText(time: unknown): string | null {
  const isShown = time instanceof Date && time.getUTCFullYear() >= 0 && time.getUTCFullYear() <= 9_999;
  return isShown ? time.toISOString() : null;
}

/** An event's members, unchecked: the row may have been written by hand. */
export type UncheckedEvent = Partial<Record<keyof ChainedEvent, unknown>>;

/** Undefined if the text is not an object in canonical form. */
export function parseEvent(canonical: string): UncheckedEvent | undefined {
  try {
    const value = parseObject(canonical);
    return value !== undefined && canonicalJson(value) === canonical ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Undefined if the text is not a JSON object. */
export function parseObject(text: string): UncheckedEvent | undefined {
  try {
    const value: unknown = JSON.parse(text);
    const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
    return isObject ? value : undefined;
  } catch {
    return undefined;
  }
}
