import type { ArchiveId } from '../../domain/ids.ts';

/** Written only by the owner. */
export interface HistoryArchiveStatesTable {
  archive_id: ArchiveId;
  kind: string;
  id: string;
  /** JSON. */
  state: string;
}
