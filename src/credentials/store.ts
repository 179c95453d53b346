import { sql } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import type { Db } from '../database/client.ts';
import type { AccessTokenId, KeyId } from '../domain/ids.ts';
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

/** If there are more keys than this, only about as many are checked, so that the time does not grow with them. */
const checkedAtMost = 100_000;

interface CheckedCredentials {
  /** Ids of credentials and pending claims whose row has a wrong MAC. */
  forged: string[];
  /** Ids of credentials that cannot be checked, because the keyring lacks the entry of their MAC. */
  withoutEntry: string[];
  /** The number of all keys if only a sample of them was checked; otherwise undefined. */
  sampledFrom: number | undefined;
}

interface CheckOptions {
  /** Check every key, whatever their number. */
  all: boolean;
  atMost?: number;
}

/** Checks the rows of credentials that can be used: every access token, and every key or a random sample of them. */
export async function checkCredentialRows(
  db: Db,
  keyring: Keyring,
  { all, atMost = checkedAtMost }: CheckOptions,
): Promise<CheckedCredentials> {
  const found = { forged: new Set<string>(), withoutEntry: new Set<string>() };
  const add = ({ id, mac_keyring_id: entry }: { id: string; mac_keyring_id: string | null }) => {
    const isMissing = entry !== null && keyring.get(entry) === undefined;
    (isMissing ? found.withoutEntry : found.forged).add(id);
  };
  const total = all ? 0 : await countKeys(db);
  const pages = total > atMost ? sampledKeys(db, total, atMost) : pagesOf<KeyRow>((last) => keysAfter(db, last?.id));
  for await (const keys of pages) {
    for (const key of keys) if (!isAuthenticKey(keyring, key)) add(key);
  }
  for await (const tokens of pagesOf<TokenRow>((last) => tokensAfter(db, last?.id))) {
    for (const token of tokens) if (!isAuthenticToken(keyring, token)) add(token);
  }
  const claims = db.selectFrom('claims').select([...claimMacColumns, 'mac', 'mac_keyring_id']);
  for (const claim of await claims.where('ended_at', 'is', null).execute()) {
    if (!isAuthenticClaim(keyring, claim)) add(claim);
  }
  return {
    forged: [...found.forged],
    withoutEntry: [...found.withoutEntry],
    sampledFrom: total > atMost ? total : undefined,
  };
}

async function countKeys(db: Db): Promise<number> {
  const { count } = await db
    .selectFrom('api_keys')
    .select(({ fn }) => fn.countAll<number>().as('count'))
    .executeTakeFirstOrThrow();
  return count;
}

type KeyRow = Awaited<ReturnType<typeof keysAfter>>[number];
type TokenRow = Awaited<ReturnType<typeof tokensAfter>>[number];

function keysAfter(db: Db, after = '') {
  return db
    .selectFrom('api_keys')
    .select([...keyMacColumns, 'mac', 'mac_keyring_id'])
    .where('purged_at', 'is', null)
    .where('id', '>', after as KeyId)
    .orderBy('id')
    .limit(rowsInBatch)
    .execute();
}

/** Random pages of the table, with about `count` rows together. */
async function* sampledKeys(db: Db, total: number, count: number): AsyncGenerator<KeyRow[]> {
  const share = sql.lit((100 * rowsInBatch) / total);
  for (let drawn = 0; drawn < count; drawn += rowsInBatch) {
    const { rows } = await sql<KeyRow>`
      select ${sql.join([...keyMacColumns, 'mac', 'mac_keyring_id'].map((column) => sql.ref(column)))}
      from api_keys tablesample system (${share}) where purged_at is null`.execute(db);
    yield rows;
  }
}

function tokensAfter(db: Db, after = '') {
  return db
    .selectFrom('access_tokens')
    .selectAll()
    .where('id', '>', after as AccessTokenId)
    .orderBy('id')
    .limit(rowsInBatch)
    .execute();
}
