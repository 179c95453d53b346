import { sql } from 'kysely';
import type { KeyId, OrganizationId } from '../core/ids.ts';
import type { Db, Tx } from '../db/client.ts';

/** A key whose plaintext is known, and which is not wholly under the primary keyring entry. */
export interface StaleKey {
  id: KeyId;
  organization_id: OrganizationId;
  sealed: Buffer;
  sealed_keyring_id: string;
  tag: Buffer;
  tag_keyring_id: string;
}

export interface RenewedKey {
  id: KeyId;
  sealed: Buffer;
  tag: Buffer;
}

const isStale = (primaryId: string) => sql<boolean>`
  sealed is not null and (sealed_keyring_id <> ${primaryId} or tag_keyring_id <> ${primaryId})`;

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

/** The next of them by id, locked against change. One that somebody else has locked is passed by. */
export async function lockStaleKeys(
  tx: Tx,
  primaryId: string,
  { after, upTo, limit }: { after: string; upTo: KeyId; limit: number },
): Promise<StaleKey[]> {
  const { rows } = await sql<StaleKey>`
    select id, organization_id, sealed, sealed_keyring_id, tag, tag_keyring_id from api_keys
    where ${isStale(primaryId)} and id > ${after} and id <= ${upTo}
    order by id limit ${limit} for no key update skip locked`.execute(tx);
  return rows;
}

/** The keys must be locked. */
export async function replaceSealsAndTags(tx: Tx, primaryId: string, keys: readonly RenewedKey[]): Promise<void> {
  if (keys.length === 0) return;
  await sql`
    update api_keys as key
    set sealed = renewed.sealed, sealed_keyring_id = ${primaryId}, tag = renewed.tag, tag_keyring_id = ${primaryId}
    from unnest(${keys.map(({ id }) => id)}::text[], ${keys.map(({ sealed }) => sealed)}::bytea[],
      ${keys.map(({ tag }) => tag)}::bytea[]) as renewed (id, sealed, tag)
    where key.id = renewed.id`.execute(tx);
}
