import type { Keyring } from '../crypto/keyring.ts';
import type { Db } from '../database/client.ts';
import type { AccessTokenId, KeyId, OrganizationId } from '../domain/ids.ts';
import { pagesOf } from '../lib/batches.ts';
import {
  claimMacColumns,
  isAuthenticClaim,
  isAuthenticKey,
  isAuthenticToken,
  keyMac,
  keyMacColumns,
  tokenMac,
} from './record-mac.ts';

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

interface UnauthenticCredentials {
  /** Ids of credentials and pending claims whose row has a wrong MAC. */
  forged: string[];
  /** Ids of credentials that cannot be checked, because the keyring lacks the entry of their MAC. */
  withoutEntry: string[];
}

/** Checks the rows of all credentials that can be used. Reads them in batches. */
export async function findUnauthenticCredentials(db: Db, keyring: Keyring): Promise<UnauthenticCredentials> {
  const found: UnauthenticCredentials = { forged: [], withoutEntry: [] };
  const add = ({ id, mac_keyring_id: entry }: { id: string; mac_keyring_id: string | null }) => {
    const isMissing = entry !== null && keyring.get(entry) === undefined;
    (isMissing ? found.withoutEntry : found.forged).push(id);
  };
  for await (const keys of pagesOf<KeyRow>((last) => keysAfter(db, last?.id ?? ''))) {
    for (const key of keys) if (!isAuthenticKey(keyring, key)) add(key);
  }
  const tokens = await db.selectFrom('access_tokens').selectAll().execute();
  for (const token of tokens) if (!isAuthenticToken(keyring, token)) add(token);
  const claims = db.selectFrom('claims').select([...claimMacColumns, 'mac', 'mac_keyring_id']);
  for (const claim of await claims.where('ended_at', 'is', null).execute()) {
    if (!isAuthenticClaim(keyring, claim)) add(claim);
  }
  return found;
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
