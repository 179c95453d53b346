import { type Selectable, sql } from 'kysely';
import { isAuthenticKey, keyMac } from '../credentials/record-mac.ts';
import type { Keyring } from '../crypto/keyring.ts';
import type { MacColumns } from '../crypto/mac.ts';
import { seal, unseal } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import { importedTagOf, tagOf } from '../crypto/tag.ts';
import type { ApiKeysTable } from '../database/tables/api-keys.ts';
import type { KeyId } from '../domain/ids.ts';
import { sealDigest, unsealDigest } from '../keys/imported-token.ts';
import { sealBinding } from '../keys/mint.ts';
import type { RekeyedKind } from './rekey.ts';

/** A key whose MAC, sealed value or tag is not under the primary keyring entry. */
type StaleKey = Selectable<ApiKeysTable>;

/** The values under the primary entry. The tag can be renewed if the plaintext or the token's SHA-256 is stored. */
interface RenewedKey extends MacColumns {
  id: KeyId;
  sealed: Buffer | null;
  digest: Buffer | null;
  tag: Buffer | null;
}

/** Renews the MAC and the sealed values of a key, and its tag if the plaintext or the token's SHA-256 is stored. */
export const keys: RekeyedKind<StaleKey, RenewedKey> = {
  eventMember: 'keys',
  table: 'api_keys',
  isStale: (primaryId) => sql`mac_keyring_id <> ${primaryId}
    or (sealed is not null and (sealed_keyring_id <> ${primaryId} or tag_keyring_id <> ${primaryId}))
    or (digest_sealed is not null and (digest_keyring_id <> ${primaryId} or tag_keyring_id <> ${primaryId}))`,
  renew(keyring, key) {
    const { id, organization_id: organizationId, mac_keyring_id: macId } = key;
    // A new MAC would make a row authentic that is not authentic now.
    if (macId === null || keyring.get(macId) === undefined) return { id, reason: 'unknown_keyring_entry' };
    if (!isAuthenticKey(keyring, key)) return { id, reason: 'row_not_authentic' };
    const plaintext = plaintextOf(keyring, key);
    const digest = digestOfKey(keyring, key);
    const tag = newTag(keyring, { plaintext, digest });
    const mac = keyMac(keyring, tag === null ? key : { ...key, tag, tag_keyring_id: keyring.primary.id });
    return {
      id,
      ...mac,
      tag,
      sealed: plaintext && seal(keyring, plaintext, sealBinding(organizationId, id)).sealed,
      digest: digest && sealDigest(keyring, organizationId, id, digest).sealed,
    };
  },
  async store(tx, renewed) {
    const primaryId = renewed[0]?.mac_keyring_id;
    if (primaryId === undefined) return;
    await sql`
      update api_keys as key
      set mac = renewed.mac, mac_keyring_id = ${primaryId},
        sealed = coalesce(renewed.sealed, key.sealed),
        sealed_keyring_id = case when renewed.sealed is null then key.sealed_keyring_id else ${primaryId} end,
        digest_sealed = coalesce(renewed.digest, key.digest_sealed),
        digest_keyring_id = case when renewed.digest is null then key.digest_keyring_id else ${primaryId} end,
        tag = coalesce(renewed.tag, key.tag),
        tag_keyring_id = case when renewed.tag is null then key.tag_keyring_id else ${primaryId} end
      from unnest(${renewed.map(({ id }) => id)}::text[], ${renewed.map(({ mac }) => mac)}::bytea[],
        ${renewed.map(({ sealed }) => sealed)}::bytea[], ${renewed.map(({ tag }) => tag)}::bytea[],
        ${renewed.map(({ digest }) => digest)}::bytea[])
        as renewed (id, mac, sealed, tag, digest)
      where key.id = renewed.id`.execute(tx);
  },
};

/** Null if it is not stored. @throws SealBroken */
function plaintextOf(keyring: Keyring, key: StaleKey): Secret | null {
  const { id, organization_id: organizationId, sealed, sealed_keyring_id: keyringId } = key;
  if (sealed === null || keyringId === null) return null;
  return unseal(keyring, { keyringId, sealed }, sealBinding(organizationId, id));
}

/** The SHA-256 of an imported key's token; null for other keys. @throws SealBroken */
function digestOfKey(keyring: Keyring, { digest_sealed, digest_keyring_id, ...key }: StaleKey): Buffer | null {
  if (digest_sealed === null || digest_keyring_id === null) return null;
  return unsealDigest(keyring, { ...key, digest_sealed, digest_keyring_id });
}

function newTag({ primary }: Keyring, known: { plaintext: Secret | null; digest: Buffer | null }): Buffer | null {
  if (known.digest !== null) return importedTagOf(primary, known.digest);
  return known.plaintext && tagOf(primary, known.plaintext);
}
