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

/** Compares in constant time. */
export function tagMatches(entry: KeyringEntry, token: Secret, tag: Buffer): boolean {
  const computed = tagOf(entry, token);
  return computed.length === tag.length && timingSafeEqual(computed, tag);
}

const decoy = Buffer.alloc(32, 0xa5);

/** The same work as a comparison, for an id that does not exist, so that the time does not reveal it. Always false. */
export function decoyMatches(entry: KeyringEntry, token: Secret): false {
  tagMatches(entry, token, decoy);
  return false;
}

/**
 * SHA-256 of a token, as text with one character per byte. The token has 256 random bits, so it cannot be found from
 * its hash, and hashes may be compared in variable time.
 */
export function tokenHashOf(token: Secret): string {
  return hash('sha256', token.reveal(), 'binary');
}
