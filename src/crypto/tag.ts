import { createHmac, hash, timingSafeEqual } from 'node:crypto';
import type { KeyringEntry } from './keyring.ts';
import type { Secret } from './secret.ts';

/**
 * The tag: HMAC-SHA-256 (RFC 2104) over the whole token, so a tag that is moved to another row does not match. A keyed
 * fast hash is enough for 256 random bits (OWASP ASVS 5.0, 6.5.2).
 */
export function tagOf(entry: KeyringEntry, token: Secret): Buffer {
  return createHmac('sha256', entry.tagKey).update(token.reveal()).digest();
}

/** Separates imported tokens from created ones: no token of Latchkey begins with this text. */
const importedLabel = 'latchkey/v1/imported ';

/** The tag of an imported key, whose token may be known only by its SHA-256. @param digest 32 bytes */
export function importedTagOf(entry: KeyringEntry, digest: Buffer): Buffer {
  return createHmac('sha256', entry.tagKey).update(importedLabel).update(digest).digest();
}

/** Compares in constant time. */
export function tagMatches(entry: KeyringEntry, token: Secret, tag: Buffer): boolean {
  return isSameTag(tagOf(entry, token), tag);
}

/** Compares in constant time. */
export function isSameTag(computed: Buffer, tag: Buffer): boolean {
  return computed.length === tag.length && timingSafeEqual(computed, tag);
}

const decoy = Buffer.alloc(32, 0xa5);

/** The same work as a comparison, for an id that does not exist, so that the time does not reveal it. Always false. */
export function decoyMatches(entry: KeyringEntry, token: Secret): false {
  tagMatches(entry, token, decoy);
  return false;
}

/** SHA-256 of a token. An imported token may be easy to guess: its hash never leaves memory unless it is sealed. */
export function digestOf(token: Secret): Buffer {
  return hash('sha256', token.reveal(), 'buffer');
}

/** SHA-256 of a token, one character per byte. */
export type TokenHash = string & { readonly __hash: 'sha256' };

/**
 * SHA-256 of a token, as text with one character per byte, for memory only. Hashes may be compared in variable time:
 * the time reveals at most a prefix of the hash, not of the token.
 */
export function tokenHashOf(token: Secret): TokenHash {
  return hash('sha256', token.reveal(), 'binary') as TokenHash;
}

/** The bytes of a `tokenHashOf`. */
export function digestFrom(tokenHash: TokenHash): Buffer {
  return Buffer.from(tokenHash, 'latin1');
}
