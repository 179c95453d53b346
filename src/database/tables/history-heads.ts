import type { ColumnType } from 'kysely';

export interface HistoryHeadsTable {
  chain: ColumnType<string, never, never>;
  sequence: ColumnType<number, never, never>;
  hash: ColumnType<Buffer, never, never>;
  at: ColumnType<Date, never, never>;
}
