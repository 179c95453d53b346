import { Command } from 'commander';
import { type Config, ConfigError, exampleOf, readConfig } from '../config/config.ts';
import { connect, type Db } from '../database/client.ts';
import {
  listBlockers,
  type MigrationResult,
  type MigrationStep,
  migrate,
  migrationStatus,
  requireSupportedSchema,
  tryMigrations,
} from '../database/migrator.ts';
import type { Replica } from '../database/replicas.ts';
import { type DatabaseAccess, databaseAccess } from '../service/database-access.ts';
import { counted, print } from './print.ts';

export function migrateCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('migrate')
    .description("update the schema of your own Postgres and grant the service's role its rights")
    .option(
      '--status',
      'only print applied and pending migrations, and what they wait for; exit code 1 if any are pending',
    )
    .option('--dry-run', 'run pending migrations and roll them back')
    .action(async (options: { status?: true; dryRun?: true }) => {
      const config = readConfig(env, { keyring: false });
      const { ownerUrl, appRole } = configuredAccess(config);
      const client = connect({ url: ownerUrl, poolSize: 2 });
      try {
        if (options.status) await printStatus(client.db);
        else if (options.dryRun) printResult('would apply', await tryMigrations(client.db));
        else {
          printResult('applied', await migrate(client, { appRole, onDelay: print }));
          await printNewer(client.db);
        }
      } finally {
        await client.close();
      }
    });
}

function configuredAccess(config: Config): DatabaseAccess {
  const access = databaseAccess(config);
  if (access.ownerUrl !== '') return access;
  throw new ConfigError([
    `MIGRATION_DATABASE_URL must be set, for example MIGRATION_DATABASE_URL=${exampleOf('MIGRATION_DATABASE_URL')}. ` +
      'The embedded database is migrated at each start.',
  ]);
}

async function printStatus(db: Db): Promise<void> {
  const { applied, pending, unknown } = await migrationStatus(db);
  for (const step of applied) print(`${unknown.includes(step) ? 'unknown' : 'applied'}  ${describe(step)}`);
  for (const step of pending) {
    print(`pending  ${describe(step)}`);
    printReplicas(await listBlockers(db, step));
  }
  if (pending.length > 0) process.exitCode = 1;
  await printNewer(db);
}

function describe({ name, requires }: MigrationStep): string {
  return requires === undefined ? `${name}, expand` : `${name}, contract, for versions that know ${requires}`;
}

/** @throws SchemaMismatch if this version no longer works with the schema */
async function printNewer(db: Db): Promise<void> {
  const { unknown } = await requireSupportedSchema(db);
  if (unknown.length > 0) print('A newer version of Latchkey has migrated this database. This version works with it.');
}

function printResult(what: string, { applied, blocked }: MigrationResult): void {
  if (applied.length > 0) print(`${what}: ${applied.join(', ')}`);
  else if (blocked.length === 0) print('The schema is up to date.');
  for (const { name, replicas } of blocked) {
    print(`waiting: ${name}, for ${counted(replicas.length, 'replica')} of an older version:`);
    printReplicas(replicas);
  }
  if (blocked.length === 0) return;
  print('Replace these replicas by this version, then run `latchkey migrate` again.');
  process.exitCode = 1;
}

function printReplicas(replicas: readonly Replica[]): void {
  for (const { applicationName, address, connectedAt, pid } of replicas) {
    const facts = [`process ${pid} of Postgres`];
    if (address !== null) facts.push(`from ${address}`);
    if (connectedAt !== null) facts.push(`since ${connectedAt.toISOString()}`);
    print(`         ${applicationName ?? 'unknown'}, ${facts.join(', ')}`);
  }
}
