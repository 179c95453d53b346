import { type Selectable, sql } from 'kysely';
import { keyMacColumns } from '../auth/record-mac.ts';
import type { KeyId } from '../core/ids.ts';
import type { MacColumns } from '../crypto/mac.ts';
import type { Db, Tx } from '../db/client.ts';
import type { ApiKeysTable } from '../db/schema.ts';

/** A key of which something is not under the primary keyring entry: its MAC, or a sealed value and its tag. */
export type StaleKey = Pick<
  Selectable<ApiKeysTable>,
  (typeof keyMacColumns)[number] | keyof MacColumns | 'sealed' | 'sealed_keyring_id'
>;

/** What is stored under the primary entry. The tag can be renewed only where the plaintext is known. */
export interface RenewedKey extends MacColumns {
  id: KeyId;
  sealed: Buffer | null;
  tag: Buffer | null;
}

const isStale = (primaryId: string) => sql<boolean>`
  (mac_keyring_id <> ${primaryId}
    or (sealed is not null and (sealed_keyring_id <> ${primaryId} or tag_keyring_id <> ${primaryId})))`;

/** How many there are, up to an id where one is given, and the last of them. */
export async function countStaleKeys(
  db: Db,
  primaryId: string,
  upTo: KeyId | null = null,
): Promise<{ count: number; lastId: KeyId | null }> {
  const { rows } = await sql<{ count: number; lastId: KeyId | null }>`
    select count(*)::int as count, max(id) as "lastId" from api_keys
    where ${isStale(primaryId)} and (${upTo}::text is null or id <= ${upTo})`.execute(db);
  return rows[0] ?? { count: 0, lastId: null };
}

/** The next of them by id, locked against change. One that another transaction has locked is skipped. */
export async function lockStaleKeys(
  tx: Tx,
  primaryId: string,
  { after, upTo, limit }: { after: string; upTo: KeyId; limit: number },
): Promise<StaleKey[]> {
  return tx
    .selectFrom('api_keys')
    .select([...keyMacColumns, 'mac', 'mac_keyring_id', 'sealed', 'sealed_keyring_id'])
    .where(isStale(primaryId))
    .where('id', '>', after as KeyId)
    .where('id', '<=', upTo)
    .orderBy('id')
    .limit(limit)
    .forNoKeyUpdate()
    .skipLocked()
    .execute();
}

/** The keys must be locked. */
export async function storeRenewedKeys(tx: Tx, primaryId: string, keys: readonly RenewedKey[]): Promise<void> {
  if (keys.length === 0) return;
  await sql`
    update api_keys as key
    set mac = renewed.mac, mac_keyring_id = ${primaryId},
      sealed = coalesce(renewed.sealed, key.sealed),
      sealed_keyring_id = case when renewed.sealed is null then key.sealed_keyring_id else ${primaryId} end,
      tag = coalesce(renewed.tag, key.tag),
      tag_keyring_id = case when renewed.tag is null then key.tag_keyring_id else ${primaryId} end
    from unnest(${keys.map(({ id }) => id)}::text[], ${keys.map(({ mac }) => mac)}::bytea[],
      ${keys.map(({ sealed }) => sealed)}::bytea[], ${keys.map(({ tag }) => tag)}::bytea[])
      as renewed (id, mac, sealed, tag)
    where key.id = renewed.id`.execute(tx);
}
