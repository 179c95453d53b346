import { createHash } from 'node:crypto';
import { canonicalJson } from '../core/canonical-json.ts';
import type { OrganizationId } from '../core/ids.ts';
import type { ChainedEvent } from './events.ts';

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

/** A stored row of history: the canonical text, the chain's two hashes, and the columns that only serve filters. */
export interface StoredEvent {
  chain: string;
  sequence: number;
  id: string;
  at: Date;
  action: string;
  actor_id: string;
  key_id: string | null;
  partner_id: string | null;
  canonical: string;
  previous_hash: Buffer;
  hash: Buffer;
}

/**
 * Whether a row stands where the chain says and says what its columns say.
 * @param previousHash the hash of the row before, or 32 zero bytes
 */
export function isSoundLink(row: StoredEvent, sequence: number, previousHash: Buffer): boolean {
  return (
    row.sequence === sequence &&
    row.previous_hash.equals(previousHash) &&
    row.hash.equals(chainHash(previousHash, row.canonical)) &&
    columnsAgree(row)
  );
}

function columnsAgree(row: StoredEvent): boolean {
  const event = parseEvent(row.canonical);
  return (
    event !== undefined &&
    canonicalJson(event) === row.canonical &&
    chainOf(event.organizationId) === row.chain &&
    event.sequence === row.sequence &&
    event.id === row.id &&
    event.at === row.at.toISOString() &&
    event.action === row.action &&
    event.actor?.id === row.actor_id &&
    event.keyId === row.key_id &&
    event.partnerId === row.partner_id
  );
}

/** Undefined where the text is no JSON object at all, which only an edit by hand can cause. */
function parseEvent(canonical: string): ChainedEvent | undefined {
  try {
    const value: unknown = JSON.parse(canonical);
    return typeof value === 'object' && value !== null ? (value as ChainedEvent) : undefined;
  } catch {
    return undefined;
  }
}
