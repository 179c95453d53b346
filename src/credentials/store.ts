import type { Keyring } from '../crypto/keyring.ts';
import type { Db } from '../database/client.ts';
import type { AccessTokenId, KeyId, OrganizationId } from '../domain/ids.ts';
import { pagesOf } from '../lib/batches.ts';
import { isAuthenticKey, isAuthenticToken, keyMac, keyMacColumns, tokenMac } from './record-mac.ts';

/** Stores a tag made with the primary keyring entry. A row that is not authentic is not changed. */
export async function replaceTag(
  db: Db,
  keyring: Keyring,
  table: 'api_keys' | 'access_tokens',
  id: KeyId | AccessTokenId,
  tag: { tag: Buffer; tag_keyring_id: string },
): Promise<void> {
  await db.transaction().execute(async (tx) => {
    if (table === 'api_keys') {
      const stored = tx.selectFrom('api_keys').select([...keyMacColumns, 'mac', 'mac_keyring_id']);
      const keys = stored.where('id', '=', id as KeyId).where('purged_at', 'is', null);
      const key = await keys.forNoKeyUpdate().executeTakeFirst();
      if (key === undefined || !isAuthenticKey(keyring, key)) return;
      const change = { ...tag, ...keyMac(keyring, { ...key, ...tag }) };
      await tx.updateTable('api_keys').set(change).where('id', '=', key.id).execute();
    } else {
      const tokens = tx
        .selectFrom('access_tokens')
        .selectAll()
        .where('id', '=', id as AccessTokenId);
      const token = await tokens.forNoKeyUpdate().executeTakeFirst();
      if (token === undefined || !isAuthenticToken(keyring, token)) return;
      const change = { ...tag, ...tokenMac(keyring, { ...token, ...tag }) };
      await tx.updateTable('access_tokens').set(change).where('id', '=', token.id).execute();
    }
  });
}

const rowsInBatch = 1_000;

/**
 * The ids of credentials whose row has a wrong MAC. Leaves out rows whose MAC's entry the keyring lacks: whether they are
 * authentic cannot be said. Reads all credentials, in batches.
 */
export async function findForgedCredentials(db: Db, keyring: Keyring): Promise<string[]> {
  const forged: string[] = [];
  const canCheck = (row: { mac_keyring_id: string | null }) =>
    row.mac_keyring_id === null || keyring.get(row.mac_keyring_id) !== undefined;
  for await (const keys of pagesOf<KeyRow>((last) => keysAfter(db, last?.id ?? ''))) {
    forged.push(...keys.filter((key) => canCheck(key) && !isAuthenticKey(keyring, key)).map(({ id }) => id));
  }
  const tokens = await db.selectFrom('access_tokens').selectAll().execute();
  return [
    ...forged,
    ...tokens.filter((token) => canCheck(token) && !isAuthenticToken(keyring, token)).map(({ id }) => id),
  ];
}

type KeyRow = Awaited<ReturnType<typeof keysAfter>>[number];

function keysAfter(db: Db, after: string) {
  return db
    .selectFrom('api_keys')
    .select([...keyMacColumns, 'mac', 'mac_keyring_id'])
    .where('purged_at', 'is', null)
    .where('id', '>', after as KeyId)
    .orderBy('id')
    .limit(rowsInBatch)
    .execute();
}

export async function organizationExists(db: Db, id: OrganizationId): Promise<boolean> {
  const row = await db.selectFrom('organizations').select('id').where('id', '=', id).executeTakeFirst();
  return row !== undefined;
}
