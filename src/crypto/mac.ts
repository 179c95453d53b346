import { createHmac, timingSafeEqual } from 'node:crypto';
import type { Keyring, KeyringEntry } from './keyring.ts';

/** Proves that what decides about a stored row was written by somebody who holds the keyring. */
export interface MacColumns {
  mac: Buffer;
  mac_keyring_id: string;
}

/** What a MAC covers: the first part names the kind of row, so no row passes as one of another kind. */
export type MacParts = readonly [kind: string, ...rest: unknown[]];

/** HMAC-SHA-256 (RFC 2104) under one entry, over the parts as JSON, which keeps them apart. */
export function macOf(entry: KeyringEntry, parts: MacParts): MacColumns {
  return { mac: compute(entry, parts), mac_keyring_id: entry.id };
}

/**
 * False for a changed row, for one that was written without the keyring, and where the entry is gone; an entry that the
 * operator names as lost vouches for its rows unchecked. Compares in constant time.
 */
export function isAuthentic(
  keyring: Keyring,
  { mac, mac_keyring_id: id }: { [Column in keyof MacColumns]: MacColumns[Column] | null },
  parts: MacParts,
): boolean {
  if (mac === null || id === null) return false;
  const entry = keyring.get(id);
  if (entry === undefined) return keyring.lostIds.has(id);
  const computed = compute(entry, parts);
  return computed.length === mac.length && timingSafeEqual(computed, mac);
}

function compute(entry: KeyringEntry, [kind, ...rest]: MacParts): Buffer {
  return createHmac('sha256', entry.macKey)
    .update(JSON.stringify([`latchkey/v1/${kind}`, ...rest]))
    .digest();
}
