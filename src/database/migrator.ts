import { setTimeout as delay } from 'node:timers/promises';
import { type Kysely, sql } from 'kysely';
import type pg from 'pg';
import { backoffMs } from '../lib/backoff.ts';
import type { DatabaseClient, Db, Tx } from './client.ts';
import { requireUtf8 } from './fitness.ts';
import { closeToPublic, grantToApp, prepareAppRole } from './grants.ts';
import { migrations, type SchemaMigration } from './migrations.ts';
import { isLockTimeout, isTransient } from './pg-error.ts';
import { excludeReplicas, listReplicas, markSession, type Replica } from './replicas.ts';
import {
  findWorkerRevision,
  lastBreakingRevision,
  migrateWorkerSchema,
  nameOfRevision,
  workerRevision,
  workerSchema,
} from './worker-schema.ts';

const migrationTable = 'schema_migrations';
const ownNames = Object.keys(migrations);
const workerName = nameOfRevision(workerRevision);
const knownNames = [...ownNames, workerName];

/** A migration as the schema or this program knows it. */
export interface MigrationStep {
  name: string;
  /** Undefined: it only expands the schema. Otherwise a program must know this migration to work after this step. */
  requires: string | undefined;
}

export interface MigrationStatus {
  applied: MigrationStep[];
  /** Known to this program and not applied yet, in order. */
  pending: MigrationStep[];
  /** Applied by a newer program. */
  unknown: MigrationStep[];
}

/** The schema does not fit this program. The message says what to do. */
export class SchemaMismatch extends Error {
  override readonly name = 'SchemaMismatch';
}

export async function migrationStatus(db: Db): Promise<MigrationStatus> {
  const worker = await findWorkerRevision(db);
  const applied = await appliedMigrations(db);
  if (worker.revision >= workerRevision) {
    const isTooNew = worker.breakingRevision > workerRevision;
    const requires = isTooNew ? nameOfRevision(worker.breakingRevision) : undefined;
    applied.push({ name: nameOfRevision(worker.revision), requires });
  }
  const pending = ownNames.map((name) => ({ name, requires: requirementOf(migrations[name]) }));
  if (worker.revision < workerRevision) {
    const isBreaking = worker.revision > 0 && worker.revision < lastBreakingRevision;
    pending.push({ name: workerName, requires: isBreaking ? workerName : undefined });
  }
  return {
    applied,
    pending: pending.filter(({ name }) => applied.every((step) => step.name !== name)),
    unknown: applied.filter(({ name }) => !knownNames.includes(name)),
  };
}

function requirementOf(migration: SchemaMigration | undefined): string | undefined {
  return migration?.kind === 'contract' ? migration.requires : undefined;
}

async function appliedMigrations(db: Db): Promise<MigrationStep[]> {
  const { rows: found } = await sql<{ oid: string | null }>`select to_regclass(${migrationTable}) as oid`.execute(db);
  if (found[0]?.oid === null) return [];
  const { rows } = await sql<{ name: string; requires: string | null }>`
    select name, requires from ${sql.table(migrationTable)} order by name`.execute(db);
  return rows.map(({ name, requires }) => ({ name, requires: requires ?? undefined }));
}

/**
 * A newer program may have migrated, as long as this one works with the result.
 * @throws SchemaMismatch if a newer program has removed what this one uses
 */
export async function requireSupportedSchema(db: Db): Promise<MigrationStatus> {
  const status = await migrationStatus(db);
  const excluding = status.unknown.filter(({ requires }) => requires !== undefined && !knownNames.includes(requires));
  if (excluding.length === 0) return status;
  const names = excluding.map(({ name }) => name).join(', ');
  throw new SchemaMismatch(
    `The database was migrated by a newer Latchkey (${names} is unknown here, and removes what this version uses). ` +
      'Run that version or a later one.',
  );
}

/**
 * Called before the service listens. Contract migrations may be pending: this program works before and after them.
 * @throws SchemaMismatch if the schema is missing, is older than this program, or has removed what it uses
 */
export async function requireCurrentSchema(db: Db): Promise<MigrationStatus> {
  const status = await requireSupportedSchema(db);
  const missing = status.pending.filter(({ name }) => migrations[name]?.kind !== 'contract');
  if (missing.length === 0) return status;
  const what =
    status.applied.length === 0 ? 'The database has no Latchkey schema yet' : 'The database schema is too old';
  const names = missing.map(({ name }) => name).join(', ');
  throw new SchemaMismatch(`${what} (${names} not applied). Run \`latchkey migrate\`, or set MIGRATE_ON_START=true.`);
}

/**
 * Called on a session that a replica keeps: as long as it is open, no migration removes what this program uses.
 * @param db the service's own connections
 * @throws SchemaMismatch if that has already happened
 */
export async function joinSchema(session: pg.ClientBase, db: Db): Promise<void> {
  await markSession(session, [ownNames.at(-1) ?? '', workerName]);
  await requireSupportedSchema(db);
}

/** The last known migrations of programs that do not work after this step. */
function excludedBy({ requires }: MigrationStep): string[] {
  if (requires === undefined) return [];
  if (requires !== workerName) return ownNames.slice(0, ownNames.indexOf(requires));
  return Array.from({ length: workerRevision - 1 }, (_, index) => nameOfRevision(index + 1));
}

/** The running replicas that do not allow this step. */
export async function listBlockers(db: Db, step: MigrationStep): Promise<Replica[]> {
  const excluded = excludedBy(step);
  return excluded.length === 0 ? [] : listReplicas(db, excluded);
}

/** A migration that waits until these replicas have ended. */
export interface BlockedMigration {
  name: string;
  replicas: Replica[];
}

export interface MigrationResult {
  applied: string[];
  blocked: BlockedMigration[];
}

interface MigrateOptions {
  /** The service's role, which gets its privileges. Undefined: the service connects as the owner. */
  appRole: string | undefined;
  /** Called with a sentence before something that can take long. */
  onDelay?: (reason: string) => void;
}

/**
 * Brings the schema up to date, then graphile-worker's, and applies the grants. What running replicas of older versions
 * use is not removed. Can be repeated, also after one that was killed. Of two at once, the second waits.
 * @param client needs two connections
 * @throws SchemaMismatch, TableInUse, DatabaseUnfit
 */
export async function migrate(client: DatabaseClient, options: MigrateOptions): Promise<MigrationResult> {
  await requireUtf8(client.db);
  return client.db.transaction().execute(async (tx) => {
    await lockMigrations(tx, options);
    return migrateLocked(client, tx, options);
  });
}

const lockPollMs = 100;

/** Polls: an index that is created concurrently waits for statements that run, so a waiting one would block it for good. */
async function lockMigrations(tx: Tx, { onDelay }: MigrateOptions): Promise<void> {
  // This transaction is idle while others migrate.
  await sql`set local idle_in_transaction_session_timeout = 0`.execute(tx);
  for (let attempt = 1; ; attempt++) {
    const { rows } = await sql<{ locked: boolean }>`
      select pg_try_advisory_xact_lock(hashtext('latchkey migration')) as locked`.execute(tx);
    if (rows[0]?.locked === true) return;
    if (attempt === 1) onDelay?.('Another run of `latchkey migrate` must end first.');
    await delay(lockPollMs);
  }
}

async function migrateLocked(client: DatabaseClient, locking: Tx, options: MigrateOptions): Promise<MigrationResult> {
  const { db } = client;
  const { appRole } = options;
  const { applied: before, pending, unknown } = await requireSupportedSchema(db);
  // The grants are those of the newer program, too.
  if (unknown.length > 0) return { applied: [], blocked: [] };
  if (appRole !== undefined) await prepareAppRole(db, appRole);
  await createMigrationTable(db);
  const result: MigrationResult = { applied: [], blocked: [] };
  for (const step of pending) {
    // In an empty database no replica can run.
    const excluded = before.length === 0 ? [] : excludedBy(step);
    if (excluded.length > 0 && result.blocked.length > 0) {
      // Contract migrations keep their order.
      result.blocked.push({ name: step.name, replicas: await listBlockers(db, step) });
      continue;
    }
    const replicas = await applyStep(client, locking, step, { ...options, excluded });
    if (replicas.length > 0) result.blocked.push({ name: step.name, replicas });
    else result.applied.push(step.name);
  }
  if (appRole !== undefined) await grantToApp(db, appRole, migrationTable);
  await closeToPublic(db);
  return result;
}

async function createMigrationTable(db: Db): Promise<void> {
  await sql`
    create table if not exists ${sql.table(migrationTable)} (
      name text collate "C" primary key,
      requires text collate "C",
      applied_at timestamptz not null default now()
    )`.execute(db);
}

interface StepOptions extends MigrateOptions {
  /** The last known migrations of programs that must not be running. */
  excluded: readonly string[];
}

/** @returns the replicas that do not allow it; none: it was applied */
async function applyStep(
  client: DatabaseClient,
  locking: Tx,
  { name, requires }: MigrationStep,
  { excluded, onDelay }: StepOptions,
): Promise<Replica[]> {
  const exclude = async (tx: Tx) => (excluded.length === 0 ? [] : excludeReplicas(tx, excluded));
  const migration = migrations[name];
  if (migration === undefined) {
    // graphile-worker commits by itself, so the replicas are excluded by the transaction around all.
    const replicas = await exclude(locking);
    if (replicas.length === 0) await migrateWorkerSchema(client);
    return replicas;
  }
  if (migration.kind === 'expand' && migration.outsideTransaction) {
    onDelay?.(
      `Migration ${name} waits for open transactions, and large tables take minutes. The service can run meanwhile.`,
    );
    await client.db.connection().execute(async (connection) => {
      await migration.up(connection as unknown as Kysely<unknown>);
      await recordMigration(connection, name, requires);
    });
    return [];
  }
  return retryLocks(name, () =>
    client.db.transaction().execute(async (tx) => {
      const replicas = await exclude(tx);
      if (replicas.length > 0) return replicas;
      await runPatiently(tx, migration);
      await recordMigration(tx, name, requires);
      return [];
    }),
  );
}

async function recordMigration(db: Db, name: string, requires: string | undefined): Promise<void> {
  await sql`
    insert into ${sql.table(migrationTable)} (name, requires) values (${name}, ${requires ?? null})`.execute(db);
}

/**
 * Every statement on a table waits behind a migration that waits for it. This limit is longer than Postgres needs to cancel an
 * autovacuum (1 s), shorter than the default of DATABASE_TIMEOUT_MS.
 */
const lockTimeoutMs = 1_200;

const lockAttempts = 5;
const retryLocksAfter = { minMs: 500, maxMs: 4_000 };

/** A table is in use by a long transaction. The message says what to do. */
export class TableInUse extends Error {
  override readonly name = 'TableInUse';
}

/** Between two attempts, the requests that waited behind the migration continue. */
async function retryLocks<Result>(name: string, run: () => Promise<Result>): Promise<Result> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await run();
    } catch (error) {
      if (!isLockTimeout(error) && !isTransient(error)) throw error;
      if (attempt === lockAttempts) {
        throw new TableInUse(
          `Migration ${name} waited ${lockAttempts} times for a table that a long transaction uses, and was rolled back. ` +
            'Find the transaction with select pid, usename, application_name, xact_start from pg_stat_activity where ' +
            'datname = current_database() order by xact_start, and run `latchkey migrate` again when it has ended.',
          { cause: error },
        );
      }
      await delay(backoffMs(attempt, retryLocksAfter));
    }
  }
}

/** Runs a migration inside a transaction, with a limit for its waits. */
async function runPatiently(tx: Tx, migration: SchemaMigration): Promise<void> {
  await sql.raw(`set local lock_timeout = ${lockTimeoutMs}`).execute(tx);
  await migration.up(tx as unknown as Kysely<unknown>);
}

class DryRunEnds extends Error {}

/**
 * Runs the pending migrations and rolls them back. Migrations outside of a transaction are not tried. Of
 * graphile-worker's, which commit by themselves, only the creation of the schema is tried.
 * @returns what would be applied, and what waits for running replicas
 */
export async function tryMigrations(db: Db): Promise<MigrationResult> {
  const { applied, pending } = await migrationStatus(db);
  const result: MigrationResult = { applied: [], blocked: [] };
  for (const step of pending) {
    const replicas = applied.length === 0 ? [] : await listBlockers(db, step);
    if (replicas.length > 0) result.blocked.push({ name: step.name, replicas });
    else result.applied.push(step.name);
  }
  const rehearse = () =>
    db.transaction().execute(async (tx) => {
      for (const { name } of pending) {
        const migration = migrations[name];
        if (migration === undefined) await sql`create schema if not exists ${sql.id(workerSchema)}`.execute(tx);
        else if (!('outsideTransaction' in migration)) await runPatiently(tx, migration);
      }
      throw new DryRunEnds();
    });
  await retryLocks(pending.map(({ name }) => name).join(', '), rehearse).catch((error: unknown) => {
    if (!(error instanceof DryRunEnds)) throw error;
  });
  return result;
}
