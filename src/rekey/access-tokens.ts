import { type Selectable, sql } from 'kysely';
import { isAuthenticToken, tokenMac } from '../credentials/record-mac.ts';
import type { MacColumns } from '../crypto/mac.ts';
import type { AccessTokensTable } from '../database/tables/access-tokens.ts';
import type { AccessTokenId } from '../domain/ids.ts';
import type { RekeyedKind } from './rekey.ts';
import { countStaleRows } from './stale-rows.ts';

/** Renews the MAC of an access token. Its tag is renewed at its next use. */
export const accessTokens: RekeyedKind<Selectable<AccessTokensTable>, { id: AccessTokenId } & MacColumns> = {
  eventMember: null,
  countStale: (db, primaryId, upTo) =>
    countStaleRows(db, 'access_tokens', sql<boolean>`mac_keyring_id <> ${primaryId}`, upTo),
  lockStale: (tx, primaryId, { after, upTo, limit }) =>
    tx
      .selectFrom('access_tokens')
      .selectAll()
      .where('mac_keyring_id', '<>', primaryId)
      .where('id', '>', after as AccessTokenId)
      .where('id', '<=', upTo as AccessTokenId)
      .orderBy('id')
      .limit(limit)
      .forNoKeyUpdate()
      .skipLocked()
      .execute(),
  renew(keyring, token) {
    const { id, mac_keyring_id: macId } = token;
    const isSound = keyring.get(macId) !== undefined && isAuthenticToken(keyring, token);
    return isSound ? { id, ...tokenMac(keyring, token) } : { id, reason: 'row_not_authentic' };
  },
  async store(tx, _primaryId, renewed) {
    for (const { id, ...mac } of renewed) await tx.updateTable('access_tokens').set(mac).where('id', '=', id).execute();
  },
};
