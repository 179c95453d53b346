/** Differences between rows and history, as the last state audit found them, by kind of row. */
export interface StateDifferenceCountsTable {
  kind: string;
  count: number;
  /** When the audit ended. */
  at: Date;
}
