import { isAuthenticToken, tokenMac } from '../auth/record-mac.ts';
import type { AccessTokenId } from '../core/ids.ts';
import type { Keyring } from '../crypto/keyring.ts';
import type { Db, Tx } from '../db/client.ts';

export interface TokenRekeyResult {
  renewed: number;
  /** Left as they are: the row is not authentic, or its keyring entry is not there to check it. */
  rejected: AccessTokenId[];
}

const tokensInBatch = 100;

/** Renews the MAC of every access token under the primary keyring entry. A tag moves at the token's next use. */
export async function rekeyAccessTokens(db: Db, keyring: Keyring): Promise<TokenRekeyResult> {
  const result: TokenRekeyResult = { renewed: 0, rejected: [] };
  for (let after: string | undefined = ''; after !== undefined; ) {
    const from: string = after;
    after = await db.transaction().execute((tx) => renewBatch(tx, keyring, from, result));
  }
  return result;
}

/** @returns where the next batch begins; undefined after the last one */
async function renewBatch(
  tx: Tx,
  keyring: Keyring,
  after: string,
  result: TokenRekeyResult,
): Promise<string | undefined> {
  const tokens = await tx
    .selectFrom('access_tokens')
    .selectAll()
    .where('mac_keyring_id', '<>', keyring.primary.id)
    .where('id', '>', after as AccessTokenId)
    .orderBy('id')
    .limit(tokensInBatch)
    .forNoKeyUpdate()
    .execute();
  for (const token of tokens) {
    if (keyring.get(token.mac_keyring_id) === undefined || !isAuthenticToken(keyring, token)) {
      result.rejected.push(token.id);
      continue;
    }
    await tx.updateTable('access_tokens').set(tokenMac(keyring, token)).where('id', '=', token.id).execute();
    result.renewed += 1;
  }
  return tokens.length < tokensInBatch ? undefined : tokens.at(-1)?.id;
}
