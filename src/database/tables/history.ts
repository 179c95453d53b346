import type { ColumnType } from 'kysely';

/** Read only: rows are inserted only by the database function `history_append()`. */
export interface HistoryTable {
  chain: ColumnType<string, never, never>;
  sequence: ColumnType<number, never, never>;
  id: ColumnType<string, never, never>;
  at: ColumnType<Date, never, never>;
  action: ColumnType<string, never, never>;
  actor_id: ColumnType<string, never, never>;
  key_id: ColumnType<string | null, never, never>;
  partner_id: ColumnType<string | null, never, never>;
  canonical: ColumnType<string, never, never>;
  previous_hash: ColumnType<Buffer, never, never>;
  hash: ColumnType<Buffer, never, never>;
}
