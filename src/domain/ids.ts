import { v7 } from 'uuid';

/**
 * Ids are `<kind>_<26 characters>`: a UUIDv7 (RFC 9562) in lower-case Crockford base32, as in TypeID 0.3. Sorted as
 * bytes they are in order of creation, so lists are ordered by id.
 */

export type Id<Kind extends string> = `${Kind}_${string}` & { readonly __id: Kind };
export type OrganizationId = Id<'org'>;
export type PartnerId = Id<'partner'>;
export type KeyId = Id<'key'>;
export type AccessTokenId = Id<'token'>;
export type EventId = Id<'event'>;
export type RecoveryRequestId = Id<'recovery'>;
export type WebhookId = Id<'webhook'>;
export type DeliveryId = Id<'delivery'>;
export type RefusalId = Id<'refusal'>;
export type ClaimId = Id<'claim'>;
export type ArchiveId = Id<'archive'>;

export type IdKind =
  | 'org'
  | 'partner'
  | 'key'
  | 'token'
  | 'event'
  | 'recovery'
  | 'webhook'
  | 'delivery'
  | 'refusal'
  | 'claim'
  | 'archive';

/** The alphabet of ids: five bits per character, so the last one of a UUIDv7 is random. */
const idAlphabet = '0123456789abcdefghjkmnpqrstvwxyz';

/** The first of the 26 characters has only three bits, so it is at most 7. */
export const idSuffixPattern = '[0-7][0-9a-hjkmnp-tv-z]{25}';

const suffix = new RegExp(`^${idSuffixPattern}$`);

export function newId<Kind extends IdKind>(kind: Kind): Id<Kind> {
  return idFromBytes(kind, v7(undefined, new Uint8Array(16)));
}

/** @param bytes the 16 bytes of a UUID */
export function idFromBytes<Kind extends IdKind>(kind: Kind, bytes: Uint8Array): Id<Kind> {
  let value = 0n;
  for (const byte of bytes) value = (value << 8n) | BigInt(byte);
  let text = '';
  for (let index = 0; index < 26; index++) {
    text = idAlphabet[Number(value & 31n)] + text;
    value >>= 5n;
  }
  return `${kind}_${text}` as Id<Kind>;
}

export function isId<Kind extends IdKind>(kind: Kind, text: string): text is Id<Kind> {
  return text.startsWith(`${kind}_`) && suffix.test(text.slice(kind.length + 1));
}

/** The 26 characters after the kind. A token contains those of its row's id. */
export function idSuffix(id: Id<IdKind>): string {
  return id.slice(id.indexOf('_') + 1);
}
