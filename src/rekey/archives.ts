import { sql } from 'kysely';
import type { MacColumns } from '../crypto/mac.ts';
import type { ArchiveId } from '../domain/ids.ts';
import { type Archive, archiveMac, isAuthenticArchive } from '../history/archives/archive.ts';
import type { RekeyedKind } from './rekey.ts';
import { countStaleRows } from './stale-rows.ts';

/** Renews the MAC of an archive of history. */
export const archives: RekeyedKind<Archive, { id: ArchiveId } & MacColumns> = {
  eventMember: null,
  countStale: (db, primaryId, upTo) =>
    countStaleRows(db, 'history_archives', sql<boolean>`mac_keyring_id <> ${primaryId}`, upTo),
  lockStale: (tx, primaryId, { after, upTo, limit }) =>
    tx
      .selectFrom('history_archives')
      .selectAll()
      .where('mac_keyring_id', '<>', primaryId)
      .where('id', '>', after as ArchiveId)
      .where('id', '<=', upTo as ArchiveId)
      .orderBy('id')
      .limit(limit)
      .forNoKeyUpdate()
      .skipLocked()
      .execute(),
  renew(keyring, archive) {
    const { id, mac_keyring_id: macId } = archive;
    const isSound = keyring.get(macId) !== undefined && isAuthenticArchive(keyring, archive);
    return isSound ? { id, ...archiveMac(keyring, archive) } : { id, reason: 'row_not_authentic' };
  },
  async store(tx, _primaryId, renewed) {
    for (const { id, ...mac } of renewed) {
      await tx.updateTable('history_archives').set(mac).where('id', '=', id).execute();
    }
  },
};
