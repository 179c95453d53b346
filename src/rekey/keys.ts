import { type Selectable, sql } from 'kysely';
import { isAuthenticKey, keyMac, keyMacColumns } from '../credentials/record-mac.ts';
import type { MacColumns } from '../crypto/mac.ts';
import { seal, unseal } from '../crypto/seal.ts';
import { tagOf } from '../crypto/tag.ts';
import type { ApiKeysTable } from '../database/tables/api-keys.ts';
import type { KeyId } from '../domain/ids.ts';
import { sealBinding } from '../keys/mint.ts';
import type { RekeyedKind } from './rekey.ts';

/** A key whose MAC, sealed value or tag is not under the primary keyring entry. */
type StaleKey = Pick<
  Selectable<ApiKeysTable>,
  (typeof keyMacColumns)[number] | keyof MacColumns | 'sealed' | 'sealed_keyring_id'
>;

/** The values under the primary entry. The tag can only be renewed if the plaintext is stored. */
interface RenewedKey extends MacColumns {
  id: KeyId;
  sealed: Buffer | null;
  tag: Buffer | null;
}

const isStale = (primaryId: string) => sql<boolean>`
  (mac_keyring_id <> ${primaryId}
    or (sealed is not null and (sealed_keyring_id <> ${primaryId} or tag_keyring_id <> ${primaryId})))`;

/** Renews the MAC of a key, and its sealed value and tag if the plaintext is stored. */
export const keys: RekeyedKind<StaleKey, RenewedKey> = {
  eventMember: 'keys',
  async countStale(db, primaryId, upTo) {
    const { rows } = await sql<{ count: number; lastId: KeyId | null }>`
      select count(*)::int as count, max(id) as "lastId" from api_keys
      where ${isStale(primaryId)} and (${upTo}::text is null or id <= ${upTo})`.execute(db);
    return rows[0] ?? { count: 0, lastId: null };
  },
  lockStale: (tx, primaryId, { after, upTo, limit }) =>
    tx
      .selectFrom('api_keys')
      .select([...keyMacColumns, 'mac', 'mac_keyring_id', 'sealed', 'sealed_keyring_id'])
      .where(isStale(primaryId))
      .where('id', '>', after as KeyId)
      .where('id', '<=', upTo as KeyId)
      .orderBy('id')
      .limit(limit)
      .forNoKeyUpdate()
      .skipLocked()
      .execute(),
  renew(keyring, key) {
    const { id, mac_keyring_id: macId, sealed, sealed_keyring_id: keyringId } = key;
    // A new MAC would make a row authentic that is not authentic now.
    if (macId === null || keyring.get(macId) === undefined) return { id, reason: 'unknown_keyring_entry' };
    if (!isAuthenticKey(keyring, key)) return { id, reason: 'row_not_authentic' };
    if (sealed === null || keyringId === null) return { id, ...keyMac(keyring, key), sealed: null, tag: null };
    const binding = sealBinding(key.organization_id, id);
    const plaintext = unseal(keyring, { keyringId, sealed }, binding);
    const tag = tagOf(keyring.primary, plaintext);
    const mac = keyMac(keyring, { ...key, tag, tag_keyring_id: keyring.primary.id });
    return { id, ...mac, sealed: seal(keyring, plaintext, binding).sealed, tag };
  },
  async store(tx, primaryId, renewed) {
    if (renewed.length === 0) return;
    await sql`
      update api_keys as key
      set mac = renewed.mac, mac_keyring_id = ${primaryId},
        sealed = coalesce(renewed.sealed, key.sealed),
        sealed_keyring_id = case when renewed.sealed is null then key.sealed_keyring_id else ${primaryId} end,
        tag = coalesce(renewed.tag, key.tag),
        tag_keyring_id = case when renewed.tag is null then key.tag_keyring_id else ${primaryId} end
      from unnest(${renewed.map(({ id }) => id)}::text[], ${renewed.map(({ mac }) => mac)}::bytea[],
        ${renewed.map(({ sealed }) => sealed)}::bytea[], ${renewed.map(({ tag }) => tag)}::bytea[])
        as renewed (id, mac, sealed, tag)
      where key.id = renewed.id`.execute(tx);
  },
};
