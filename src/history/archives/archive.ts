import type { Selectable } from 'kysely';
import type { Keyring } from '../../crypto/keyring.ts';
import { isAuthentic, type MacColumns, type MacParts, macOf } from '../../crypto/mac.ts';
import type { Db } from '../../database/client.ts';
import type { HistoryArchivesTable } from '../../database/tables/history-archives.ts';
import type { ChainFlaw, ChainStart } from '../chain-walk.ts';
import type { State } from '../state-replay.ts';

/** Events of a chain that were moved to a file. Each archive continues the one before. */
export type Archive = Selectable<HistoryArchivesTable>;

/** What an archive's MAC covers. */
export type ArchiveContent = Omit<Archive, keyof MacColumns>;

export function archiveMac(keyring: Keyring, archive: ArchiveContent): MacColumns {
  return macOf(keyring.primary, partsOf(archive));
}

export function isAuthenticArchive(keyring: Keyring, archive: Archive): boolean {
  return isAuthentic(keyring, archive, partsOf(archive));
}

function partsOf(archive: ArchiveContent): MacParts {
  return ['history_archive', archive.id, toDetails(archive)];
}

/** An archive as its event and a comparison of states show it. */
export function toDetails(archive: ArchiveContent): State {
  return {
    chain: archive.chain,
    firstSequence: archive.first_sequence,
    lastSequence: archive.last_sequence,
    head: archive.hash.toString('hex'),
    fileSha256: archive.file_sha256.toString('hex'),
    fileBytes: archive.file_bytes,
    statesSha256: archive.states_sha256.toString('hex'),
    archivedAt: archive.archived_at.toISOString(),
  };
}

/** The beginning of a chain that is in files. */
export interface ArchivedPart {
  /** In order, each following the one before; without rows that are not authentic. */
  archives: Archive[];
  /** Rows that are not authentic, or do not follow the one before. */
  flaws: ChainFlaw[];
}

/** @param keyring undefined: the rows are used, and each of them is a flaw, because it cannot be authenticated */
export async function readArchivedPart(db: Db, chain: string, keyring: Keyring | undefined): Promise<ArchivedPart> {
  const rows = await db
    .selectFrom('history_archives')
    .selectAll()
    .where('chain', '=', chain)
    .orderBy('first_sequence')
    .execute();
  const archives: Archive[] = [];
  const flaws: ChainFlaw[] = [];
  for (const row of rows) {
    const reason = flawOf(row, archives.at(-1)?.last_sequence ?? 0, keyring);
    if (reason !== undefined)
      flaws.push({ firstSequence: row.first_sequence, lastSequence: row.last_sequence, reason });
    if (reason === undefined || reason === withoutKeyring) archives.push(row);
  }
  return { archives, flaws };
}

/** The archive that the stored part of the chain follows; undefined if nothing of the chain is archived. */
export async function readLastArchive(
  db: Db,
  chain: string,
  keyring: Keyring | undefined,
): Promise<Archive | undefined> {
  const { archives } = await readArchivedPart(db, chain, keyring);
  return archives.at(-1);
}

/** Where the stored part of a chain begins. */
export function endOf({ last_sequence: sequence, hash }: Archive): ChainStart {
  return { sequence, hash };
}

export const withoutKeyring =
  'these events are archived, and without the keyring the archive cannot be authenticated: set it, or give the files with --archive';

function flawOf(row: Archive, previousLast: number, keyring: Keyring | undefined): string | undefined {
  if (row.first_sequence !== previousLast + 1) return 'the archive of these events does not follow the one before';
  if (keyring === undefined) return withoutKeyring;
  if (isAuthenticArchive(keyring, row)) return undefined;
  const isKnown = keyring.get(row.mac_keyring_id) !== undefined;
  return isKnown
    ? 'the archive of these events was written or changed without the keyring'
    : `the archive of these events cannot be authenticated: the keyring lacks ${row.mac_keyring_id}`;
}
