import type { Generated } from 'kysely';

/** The runs of each background job, on any replica. */
export interface JobRunsTable {
  name: string;
  first_seen_at: Generated<Date>;
  last_started_at: Date | null;
  last_succeeded_at: Date | null;
  last_failed_at: Date | null;
  last_error: string | null;
  /** What the last successful run processed, and how long it took. */
  last_count: number | null;
  last_duration_ms: number | null;
}
