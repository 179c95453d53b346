import { sql } from 'kysely';
import type { MacColumns } from '../crypto/mac.ts';
import type { ArchiveId } from '../domain/ids.ts';
import { type Archive, archiveMac, isAuthenticArchive } from '../history/archives/archive.ts';
import type { RekeyedKind } from './rekey.ts';

/** Renews the MAC of an archive of history. */
export const archives: RekeyedKind<Archive, { id: ArchiveId } & MacColumns> = {
  eventMember: null,
  table: 'history_archives',
  isStale: (primaryId) => sql`mac_keyring_id <> ${primaryId}`,
  renew(keyring, archive) {
    const { id, mac_keyring_id: macId } = archive;
    const isSound = keyring.get(macId) !== undefined && isAuthenticArchive(keyring, archive);
    return isSound ? { id, ...archiveMac(keyring, archive) } : { id, reason: 'row_not_authentic' };
  },
  async store(tx, renewed) {
    for (const { id, ...mac } of renewed) {
      await tx.updateTable('history_archives').set(mac).where('id', '=', id).execute();
    }
  },
};
