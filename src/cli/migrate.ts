import { Command } from 'commander';
import { type Config, ConfigError, exampleOf, readConfig } from '../config/config.ts';
import { connect, type Db } from '../database/client.ts';
import { migrate, migrationStatus, tryMigrations } from '../database/migrator.ts';
import { type DatabaseAccess, databaseAccess } from '../service/database-access.ts';
import { print } from './print.ts';

export function migrateCommand(env: NodeJS.ProcessEnv): Command {
  return new Command('migrate')
    .description("update the schema of your own Postgres and grant the service's role its rights")
    .option('--status', 'only print applied and pending migrations; exit code 1 if any are pending')
    .option('--dry-run', 'run pending migrations and roll them back')
    .action(async (options: { status?: true; dryRun?: true }) => {
      const config = readConfig(env, { keyring: false });
      const { ownerUrl, appRole } = configuredAccess(config);
      const client = connect({ url: ownerUrl, poolSize: 2 });
      try {
        if (options.status) await printStatus(client.db);
        else if (options.dryRun) printResult('would apply', await tryMigrations(client.db));
        else printResult('applied', await migrate(client, { appRole }));
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
  for (const name of applied) print(`${unknown.includes(name) ? 'unknown' : 'applied'}  ${name}`);
  for (const name of pending) print(`pending  ${name}`);
  if (unknown.length > 0)
    print('A newer version of Latchkey has migrated this database. Run that version or a later one.');
  if (pending.length + unknown.length > 0) process.exitCode = 1;
}

function printResult(what: string, names: readonly string[]): void {
  print(names.length === 0 ? 'The schema is up to date.' : `${what}: ${names.join(', ')}`);
}
