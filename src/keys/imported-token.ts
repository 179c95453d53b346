import type { Keyring } from '../crypto/keyring.ts';
import { type SealBinding, seal, unseal } from '../crypto/seal.ts';
import { Secret } from '../crypto/secret.ts';
import { digestOf, importedTagOf } from '../crypto/tag.ts';
import { type KeyId, newId, type OrganizationId } from '../domain/ids.ts';
import { sealBinding } from './mint.ts';
import type { NewKey } from './store.ts';

/** A token that was made elsewhere. */
export interface ImportedToken {
  /** The SHA-256 of the whole token. */
  digest: Buffer;
  /** Null if only the SHA-256 is known. */
  plaintext: Secret | null;
  lastFour: string | null;
}

/** @param lastFour for a token of which only the SHA-256 is known */
export function importedToken(
  given: { plaintext: string } | { sha256: string; lastFour: string | null },
): ImportedToken {
  if ('sha256' in given) {
    return { digest: Buffer.from(given.sha256, 'hex'), plaintext: null, lastFour: given.lastFour };
  }
  const plaintext = new Secret(given.plaintext);
  return { digest: digestOf(plaintext), plaintext, lastFour: given.plaintext.slice(-4) };
}

type TokenColumns = Pick<
  NewKey,
  | 'tag'
  | 'tag_keyring_id'
  | 'argon2id_hash'
  | 'sealed'
  | 'sealed_keyring_id'
  | 'digest_sealed'
  | 'digest_keyring_id'
  | 'last_four'
>;

/** The id of a new imported key, and what is stored of its token. */
export function importColumns(
  keyring: Keyring,
  organizationId: OrganizationId,
  { digest, plaintext, lastFour }: ImportedToken,
  mayBeRevealed: boolean,
): { id: KeyId } & TokenColumns {
  const id = newId('key');
  const sealedToken =
    plaintext === null || !mayBeRevealed ? undefined : seal(keyring, plaintext, sealBinding(organizationId, id));
  const sealedDigest = sealDigest(keyring, organizationId, id, digest);
  return {
    id,
    tag: importedTagOf(keyring.primary, digest),
    tag_keyring_id: keyring.primary.id,
    argon2id_hash: null,
    sealed: sealedToken?.sealed ?? null,
    sealed_keyring_id: sealedToken?.keyringId ?? null,
    digest_sealed: sealedDigest.sealed,
    digest_keyring_id: sealedDigest.keyringId,
    last_four: lastFour,
  };
}

export function sealDigest(keyring: Keyring, organizationId: OrganizationId, id: KeyId, digest: Buffer) {
  return seal(keyring, new Secret(digest.toString('hex')), digestBinding(organizationId, id));
}

/** @throws SealBroken */
export function unsealDigest(
  keyring: Keyring,
  key: { id: KeyId; organization_id: OrganizationId; digest_sealed: Buffer; digest_keyring_id: string },
): Buffer {
  const { digest_sealed: sealed, digest_keyring_id: keyringId } = key;
  const hex = unseal(keyring, { keyringId, sealed }, digestBinding(key.organization_id, key.id));
  return Buffer.from(hex.reveal(), 'hex');
}

function digestBinding(organizationId: OrganizationId, id: KeyId): SealBinding {
  return { purpose: 'imported_digest', organizationId, recordId: id };
}
