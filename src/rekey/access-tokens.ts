import { type Selectable, sql } from 'kysely';
import { isAuthenticToken, tokenMac } from '../credentials/record-mac.ts';
import type { MacColumns } from '../crypto/mac.ts';
import type { AccessTokensTable } from '../database/tables/access-tokens.ts';
import type { AccessTokenId } from '../domain/ids.ts';
import type { RekeyedKind } from './rekey.ts';

/** Renews the MAC of an access token. Its tag is renewed at its next use. */
export const accessTokens: RekeyedKind<Selectable<AccessTokensTable>, { id: AccessTokenId } & MacColumns> = {
  eventMember: null,
  table: 'access_tokens',
  isStale: (primaryId) => sql`mac_keyring_id <> ${primaryId}`,
  renew(keyring, token) {
    const { id, mac_keyring_id: macId } = token;
    const isSound = keyring.get(macId) !== undefined && isAuthenticToken(keyring, token);
    return isSound ? { id, ...tokenMac(keyring, token) } : { id, reason: 'row_not_authentic' };
  },
  async store(tx, renewed) {
    for (const { id, ...mac } of renewed) await tx.updateTable('access_tokens').set(mac).where('id', '=', id).execute();
  },
};
