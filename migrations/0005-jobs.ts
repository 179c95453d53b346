import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

const jobRuns = `
create table job_runs (
  name text collate "C" primary key,
  first_seen_at timestamptz not null default now(),
  last_started_at timestamptz,
  last_succeeded_at timestamptz,
  last_failed_at timestamptz,
  last_error text,
  last_count bigint,
  last_duration_ms bigint
);
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(jobRuns).execute(db);
}
