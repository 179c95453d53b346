import { createHmac, timingSafeEqual } from 'node:crypto';
import type { Keyring, KeyringEntry } from './keyring.ts';

/** Authenticates a stored row: only a holder of the keyring can have written it. */
export interface MacColumns {
  mac: Buffer;
  mac_keyring_id: string;
}

/** The parts that a MAC covers. The first one names the kind of row, so that a row is not accepted as another kind. */
export type MacParts = readonly [kind: string, ...rest: unknown[]];

/** HMAC-SHA-256 (RFC 2104) with one entry, over the parts as JSON, which keeps them apart. */
export function macOf(entry: KeyringEntry, parts: MacParts): MacColumns {
  return { mac: compute(entry, parts), mac_keyring_id: entry.id };
}

/**
 * False for a row that was changed or written without the keyring, and if the entry is missing. Rows of an entry in
 * LOST_KEYRING_IDS are accepted without a check. Compares in constant time.
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
