import { sql } from 'kysely';
import type { Db, Tx } from './client.ts';
import { isMissingPrivilege } from './pg-error.ts';
import { workerSchema, workerTables } from './worker-schema.ts';

/**
 * The privileges of the service's role. Every `latchkey migrate` applies them again, so that a new or renamed role gets
 * the same. Nothing here is part of a migration.
 */
const privileges: Record<string, string> = {
  installation: 'select, insert',
  keyring_entries: 'select, insert',
  organizations: 'select, insert, update',
  partners: 'select, insert, update',
  api_keys: 'select, insert, update',
  access_tokens: 'select, insert, update',
  access_token_uses: 'select, insert, update',
  claims: 'select, insert, update',
  history: 'select',
  history_heads: 'select',
  history_archives: 'select, update (mac, mac_keyring_id)',
  history_archive_states: 'select',
  verified_points: 'select, insert, update',
  usage_hours: 'select, insert, update, delete',
  usage_days: 'select, insert, update',
  key_last_uses: 'select, insert, update',
  recovery_requests: 'select, insert, update',
  expiry_notices: 'select, insert, delete',
  idle_notices: 'select, insert, update, delete',
  deleted_key_uses: 'select, insert, delete',
  leak_reports: 'select, insert, delete',
  idempotency_keys: 'select, insert, delete, update (sealed, sealed_keyring_id)',
  job_runs: 'select, insert, update',
  state_difference_counts: 'select, insert, update',
  webhook_endpoints: 'select, insert, update',
  webhook_deliveries: 'select, insert, update, delete',
  webhook_attempts: 'select, insert',
  refused_attempts: 'select, insert, update, delete',
};

/** The role does not exist and the migration role may not create it. The message contains the two statements. */
export class AppRoleMissing extends Error {
  override readonly name = 'AppRoleMissing';
}

/**
 * Creates the service's role if it does not exist. Roles belong to the whole cluster, so another database's migration
 * may create the same role at the same moment. Sets no password: that is the administrator's task.
 */
export async function prepareAppRole(db: Db, role: string): Promise<void> {
  const { rows } = await sql`select 1 from pg_roles where rolname = ${role}`.execute(db);
  if (rows.length > 0) return;
  const create = `create role ${sql.id(role).compile(db).sql} login`;
  try {
    await sql
      .raw(`do $do$ begin ${create}; exception when duplicate_object or unique_violation then null; end $do$`)
      .execute(db);
  } catch (error) {
    if (!isMissingPrivilege(error)) throw error;
    throw new AppRoleMissing(
      `Role ${role} does not exist, and the migration role may not create roles. As an administrator run:\n` +
        `  ${create};\n  alter role ${sql.id(role).compile(db).sql} password '…';\nThen run \`latchkey migrate\` again. ` +
        'To use another role, set APP_ROLE.',
    );
  }
}

/**
 * Allows no other role of the cluster to connect: it could listen to change notifications and flood them. If the
 * migration role does not own the database, `latchkey doctor` reports what is left to do.
 */
export async function closeToPublic(db: Db): Promise<void> {
  await db.transaction().execute(async (tx) => {
    const { rows } = await sql<{ mine: boolean; me: string }>`
      select pg_has_role(current_user, datdba, 'USAGE') as mine, quote_ident(session_user) as me
      from pg_database where datname = current_database()`.execute(tx);
    const [facts] = rows;
    if (facts?.mine !== true || !(await mayPublicConnect(tx))) return;
    const database = await currentDatabase(tx);
    // The migration role itself may be connected by the privilege of `public`.
    await sql.raw(`grant connect on database ${database} to ${facts.me}`).execute(tx);
    await sql.raw(`revoke connect on database ${database} from public`).execute(tx);
  });
}

async function mayPublicConnect(tx: Tx): Promise<boolean> {
  const { rows } = await sql<{ may: boolean }>`
    select has_database_privilege('public', current_database(), 'connect') as may`.execute(tx);
  return rows[0]?.may === true;
}

export async function grantToApp(db: Db, role: string, migrationTable: string): Promise<void> {
  await db.transaction().execute(async (tx) => {
    const grantee = sql.id(role).compile(tx).sql;
    for (const statement of statementsFor(grantee, migrationTable, await currentDatabase(tx))) {
      await sql.raw(statement).execute(tx);
    }
    await allowWorkerTables(tx, role);
  });
}

function statementsFor(grantee: string, migrationTable: string, database: string): string[] {
  return [
    `grant connect on database ${database} to ${grantee}`,
    `grant usage on schema public to ${grantee}`,
    ...Object.keys(privileges).map((table) => `revoke all on ${table} from ${grantee}`),
    ...Object.entries(privileges).map(([table, granted]) => `grant ${granted} on ${table} to ${grantee}`),
    `grant select on ${migrationTable} to ${grantee}`,
    `grant execute on function history_begin(text), history_append(text, text), hold_credential(text) to ${grantee}`,
    `grant usage on schema ${workerSchema} to ${grantee}`,
    `revoke all on all tables in schema ${workerSchema} from ${grantee}`,
    `grant select on ${workerSchema}.migrations, ${workerSchema}.jobs to ${grantee}`,
    `grant select, insert, update, delete on ${workerTables.map((table) => `${workerSchema}.${table}`)} to ${grantee}`,
  ];
}

/** graphile-worker's tables have row-level security without a policy, so grants alone do not show the role any rows. */
async function allowWorkerTables(tx: Tx, role: string): Promise<void> {
  const policy = sql.id('latchkey_service');
  for (const table of workerTables) {
    const name = sql.table(`${workerSchema}.${table}`);
    // Creating a policy locks the table against every worker, so a policy that is already right is not touched.
    const { rows } = await sql`
      select 1 from pg_policies where schemaname = ${workerSchema} and tablename = ${table}
        and policyname = 'latchkey_service' and roles = array[${role}]::name[]
        and cmd = 'ALL' and qual = 'true' and with_check = 'true'`.execute(tx);
    if (rows.length > 0) continue;
    await sql`drop policy if exists ${policy} on ${name}`.execute(tx);
    await sql`create policy ${policy} on ${name} to ${sql.id(role)} using (true) with check (true)`.execute(tx);
  }
}

async function currentDatabase(tx: Tx): Promise<string> {
  const { rows } = await sql<{ name: string }>`select quote_ident(current_database()) as name`.execute(tx);
  return rows[0]?.name ?? '';
}
