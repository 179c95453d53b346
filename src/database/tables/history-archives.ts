import type { ColumnType } from 'kysely';
import type { ArchiveId } from '../../domain/ids.ts';

/** Inserted only by the owner. The service's role may renew the MAC. */
export interface HistoryArchivesTable {
  id: ColumnType<ArchiveId, ArchiveId, never>;
  chain: ColumnType<string, string, never>;
  first_sequence: ColumnType<number, number, never>;
  last_sequence: ColumnType<number, number, never>;
  hash: ColumnType<Buffer, Buffer, never>;
  file_sha256: ColumnType<Buffer, Buffer, never>;
  file_bytes: ColumnType<number, number, never>;
  states_sha256: ColumnType<Buffer, Buffer, never>;
  archived_at: ColumnType<Date, Date, never>;
  mac: Buffer;
  mac_keyring_id: string;
}
