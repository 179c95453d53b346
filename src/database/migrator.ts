import { type Kysely, type Migration, Migrator, sql } from 'kysely';
import * as initial from '../../migrations/0001-initial.ts';
import type { DatabaseClient, Db } from './client.ts';
import { requireUtf8 } from './fitness.ts';
import { closeToPublic, grantToApp, prepareAppRole } from './grants.ts';
import {
  findWorkerRevision,
  migrateWorkerSchema,
  nameOfRevision,
  workerRevision,
  workerSchema,
} from './worker-schema.ts';

/** In order. A released migration is never renamed, edited or removed. */
const migrations: Record<string, Migration> = {
  '0001-initial': initial,
};

const migrationTable = 'schema_migrations';
const migrationLockTable = 'schema_migrations_lock';

export interface MigrationStatus {
  applied: string[];
  /** Known to this program and not applied yet, in order. */
  pending: string[];
  /** Applied by a newer program. This one must not run on such a schema. */
  unknown: string[];
}

/** The schema does not fit this program. The message says what to do. */
export class SchemaMismatch extends Error {
  override readonly name = 'SchemaMismatch';
}

export async function migrationStatus(db: Db): Promise<MigrationStatus> {
  const applied = [...(await appliedMigrations(db)), ...(await appliedWorkerRevision(db))];
  const known = [...Object.keys(migrations), nameOfRevision(workerRevision)];
  return {
    applied,
    pending: known.filter((name) => !applied.includes(name)),
    unknown: applied.filter((name) => !known.includes(name)),
  };
}

async function appliedMigrations(db: Db): Promise<string[]> {
  const { rows: found } = await sql<{ oid: string | null }>`select to_regclass(${migrationTable}) as oid`.execute(db);
  if (found[0]?.oid === null) return [];
  const { rows } = await sql<{ name: string }>`select name from ${sql.table(migrationTable)} order by name`.execute(db);
  return rows.map((row) => row.name);
}

/** graphile-worker's schema as one more name. An older revision counts as not applied; a newer one is unknown. */
async function appliedWorkerRevision(db: Db): Promise<string[]> {
  const revision = await findWorkerRevision(db);
  return revision < workerRevision ? [] : [nameOfRevision(revision)];
}

/**
 * Called before the service listens.
 * @throws SchemaMismatch if the schema is missing, older or newer than this program
 */
export async function requireCurrentSchema(db: Db): Promise<void> {
  const { applied, pending, unknown } = await migrationStatus(db);
  if (unknown.length > 0) {
    throw new SchemaMismatch(
      `The database was migrated by a newer Latchkey (${unknown.join(', ')} is unknown here). Run that version or a later one.`,
    );
  }
  if (pending.length > 0) {
    const what = applied.length === 0 ? 'The database has no Latchkey schema yet' : 'The database schema is too old';
    throw new SchemaMismatch(
      `${what} (${pending.join(', ')} not applied). Run \`latchkey migrate\`, or set MIGRATE_ON_START=true.`,
    );
  }
}

interface MigrateOptions {
  /** The service's role, which gets its privileges. Undefined: the service connects as the owner. */
  appRole: string | undefined;
}

/**
 * Brings the schema up to date, then graphile-worker's, and applies the grants. Can be repeated, also after one that was
 * killed: Latchkey's own migrations are one transaction. Of two at once, the second waits.
 * @param client needs two connections
 * @returns the names of the migrations that this run applied
 * @throws SchemaMismatch if a newer program has migrated, DatabaseUnfit
 */
export async function migrate(client: DatabaseClient, options: MigrateOptions): Promise<string[]> {
  await requireUtf8(client.db);
  // One lock for all steps: Kysely lists all tables first, and that fails while graphile-worker renames some of its own.
  return client.db.transaction().execute(async (tx) => {
    await sql`select pg_advisory_xact_lock(hashtext('latchkey migration'))`.execute(tx);
    return migrateLocked(client, options);
  });
}

async function migrateLocked(client: DatabaseClient, { appRole }: MigrateOptions): Promise<string[]> {
  const { db } = client;
  const { unknown } = await migrationStatus(db);
  if (unknown.length > 0) await requireCurrentSchema(db);
  if (appRole !== undefined) await prepareAppRole(db, appRole);
  const migrator = new Migrator({
    db,
    provider: { getMigrations: () => Promise.resolve(migrations) },
    migrationTableName: migrationTable,
    migrationLockTableName: migrationLockTable,
  });
  const { error, results } = await migrator.migrateToLatest();
  if (error !== undefined) throw error;
  const applied = (results ?? []).map((result) => result.migrationName);
  if (await migrateWorkerSchema(client)) applied.push(nameOfRevision(workerRevision));
  if (appRole !== undefined) await grantToApp(db, appRole, migrationTable);
  await closeToPublic(db);
  return applied;
}

class DryRunEnds extends Error {}

/**
 * Runs the pending migrations and rolls them back. Of graphile-worker's, which commit by themselves, only the creation
 * of the schema is tried.
 * @returns the names of the migrations that would be applied
 */
export async function tryMigrations(db: Db): Promise<string[]> {
  const { pending } = await migrationStatus(db);
  try {
    await db.transaction().execute(async (tx) => {
      for (const name of pending) await migrations[name]?.up(tx as unknown as Kysely<unknown>);
      if (pending.includes(nameOfRevision(workerRevision))) {
        await sql`create schema if not exists ${sql.id(workerSchema)}`.execute(tx);
      }
      throw new DryRunEnds();
    });
  } catch (error) {
    if (!(error instanceof DryRunEnds)) throw error;
  }
  return pending;
}
