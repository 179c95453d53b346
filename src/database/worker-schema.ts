import { Logger, runMigrations } from 'graphile-worker';
import { sql } from 'kysely';
import type { DatabaseClient, Db } from './client.ts';

/** The schema of graphile-worker's queue. The migration role owns it. */
export const workerSchema = 'graphile_worker';

/** The newest migration of this version of graphile-worker. A test compares it with the package. */
export const workerRevision = 19;

/** The newest of these migrations that graphile-worker declares as breaking for its older versions. Tested, too. */
export const lastBreakingRevision = 19;

/** graphile-worker's tables with row-level security, which need a policy for the service's role. */
export const workerTables = ['_private_jobs', '_private_job_queues', '_private_tasks', '_private_known_crontabs'];

/** The name of a revision among the names of migrations. */
export function nameOfRevision(revision: number): string {
  return `${workerSchema}@${revision}`;
}

interface WorkerRevision {
  revision: number;
  /** The newest one with which older versions of graphile-worker do not work. */
  breakingRevision: number;
}

/**
 * The revision of graphile-worker's schema. 0 if it is missing or this role cannot read it: both need `latchkey
 * migrate`.
 */
export async function findWorkerRevision(db: Db): Promise<WorkerRevision> {
  const { rows } = await sql<{ readable: boolean }>`
    select has_schema_privilege(namespace.oid, 'usage') and has_table_privilege(class.oid, 'select') as readable
    from pg_namespace as namespace join pg_class as class on class.relnamespace = namespace.oid
    where namespace.nspname = ${workerSchema} and class.relname = 'migrations'`.execute(db);
  if (rows[0]?.readable !== true) return { revision: 0, breakingRevision: 0 };
  const found = await sql<WorkerRevision>`
    select coalesce(max(id), 0) as revision, coalesce(max(id) filter (where breaking), 0) as "breakingRevision"
    from ${sql.table(`${workerSchema}.migrations`)}`.execute(db);
  return found.rows[0] ?? { revision: 0, breakingRevision: 0 };
}

/**
 * Runs graphile-worker's own migrations as the role of this client, which needs `create` on the database. Each step is a
 * transaction, so after a migration that was killed the next one continues. `migrate` holds the lock.
 */
export async function migrateWorkerSchema({ pool }: DatabaseClient): Promise<void> {
  await runMigrations({ pgPool: pool, schema: workerSchema, logger: silent });
}

const silent = new Logger(() => () => undefined);
