import { Logger, runMigrations } from 'graphile-worker';
import { sql } from 'kysely';
import type { DatabaseClient, Db } from './client.ts';

/** graphile-worker's own tables: where its queue of jobs lies. They belong to the role that migrates. */
export const workerSchema = 'graphile_worker';

/** The newest of the steps that this version of graphile-worker brings; a test holds it against the package. */
export const workerRevision = 19;

/** Where its tables are under row-level security, which lets nobody but their owner in without a policy. */
export const workerTables = ['_private_jobs', '_private_job_queues', '_private_tasks', '_private_known_crontabs'];

/** A revision of graphile-worker's schema, as it stands among the names of migrations. */
export function nameOfRevision(revision: number): string {
  return `${workerSchema}@${revision}`;
}

/**
 * How far graphile-worker's schema has been migrated. 0 where it is missing, and where the asking role was not let in:
 * the remedy is the same.
 */
export async function findWorkerRevision(db: Db): Promise<number> {
  const { rows } = await sql<{ readable: boolean }>`
    select has_schema_privilege(namespace.oid, 'usage') and has_table_privilege(class.oid, 'select') as readable
    from pg_namespace as namespace join pg_class as class on class.relnamespace = namespace.oid
    where namespace.nspname = ${workerSchema} and class.relname = 'migrations'`.execute(db);
  if (rows[0]?.readable !== true) return 0;
  const found = await sql<{ revision: number | null }>`
    select max(id) as revision from ${sql.table(`${workerSchema}.migrations`)}`.execute(db);
  return found.rows[0]?.revision ?? 0;
}

/**
 * Runs graphile-worker's own migrations as the role of this client, which needs `create` on the database. Each step is a
 * transaction, so after a migration that was killed the next one continues. `migrate` holds the lock.
 * @returns whether there was anything to do
 */
export async function migrateWorkerSchema({ db, pool }: DatabaseClient): Promise<boolean> {
  if ((await findWorkerRevision(db)) >= workerRevision) return false;
  await runMigrations({ pgPool: pool, schema: workerSchema, logger: silent });
  return true;
}

const silent = new Logger(() => () => undefined);
