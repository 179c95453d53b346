import { type Selectable, sql } from 'kysely';
import type { Db } from '../database/client.ts';
import type { JobRunsTable } from '../database/tables/job-runs.ts';

export type JobRun = Selectable<JobRunsTable>;

/** The recorded runs of all jobs, by name. */
export async function listJobRuns(db: Db): Promise<JobRun[]> {
  return db
    .selectFrom('job_runs')
    .select([
      'name',
      'first_seen_at',
      'last_started_at',
      'last_succeeded_at',
      'last_failed_at',
      'last_error',
      'last_count',
      'last_duration_ms',
    ])
    .orderBy('name')
    .execute();
}

/** Registers jobs, so that missed runs are noticed from now on. */
export async function insertJobs(db: Db, names: readonly string[]): Promise<void> {
  if (names.length === 0) return;
  await db
    .insertInto('job_runs')
    .values(names.map((name) => ({ name })))
    .onConflict((conflict) => conflict.doNothing())
    .execute();
}

/**
 * Deletes queue rows that no worker takes again: killed workers left them locked, and their job was due again since.
 */
export async function deleteAbandoned(db: Db): Promise<void> {
  await sql`
    select graphile_worker.complete_jobs(array_agg(id)) from graphile_worker.jobs
    where key is null and attempts >= max_attempts`.execute(db);
}

const now = sql<Date>`clock_timestamp()`;

export async function markStarted(db: Db, name: string): Promise<void> {
  await db.updateTable('job_runs').set({ last_started_at: now }).where('name', '=', name).execute();
}

export async function markSucceeded(
  db: Db,
  name: string,
  { count, durationMs }: { count: number; durationMs: number },
): Promise<void> {
  await db
    .updateTable('job_runs')
    .set({ last_succeeded_at: now, last_count: count, last_duration_ms: Math.round(durationMs) })
    .where('name', '=', name)
    .execute();
}

export async function markFailed(db: Db, name: string, error: string): Promise<void> {
  await db.updateTable('job_runs').set({ last_failed_at: now, last_error: error }).where('name', '=', name).execute();
}
