import { sql } from 'kysely';
import type { Db } from './client.ts';

/** Something that the promises about records rest on, and whether the database has it. */
export interface Guarantee {
  /** A whole sentence, as it is where all is well. */
  name: string;
  kept: boolean;
  /** What is wrong and what to do about it. */
  remedy: string;
}

/** What the database says of the role that the service connects as, and of itself. Roles are listed by name. */
export interface GuaranteeFacts {
  /** As whom the service has logged in. */
  role: string;
  /** Roles that it is or may become, and before which nothing in the cluster is safe. */
  superusers: string[];
  bypassingRowSecurity: string[];
  /** Those that own history, what writes it, or what it lies in. */
  owners: string[];
  /** Those that may write history without `history_append()`. */
  writers: string[];
  mayCreateRoles: boolean;
  isTriggerSound: boolean;
  /** Other than `origin`, foreign keys are not checked. */
  replicationRole: string;
  mayPublicConnect: boolean;
  fsync: string;
  fullPageWrites: string;
  synchronousCommit: string;
  /** As `server_version_num` has it. */
  version: number;
}

/** Looks at the database as the service's own role sees it. Needs a current schema. */
export async function checkGuarantees(db: Db): Promise<Guarantee[]> {
  return judgeGuarantees(await readFacts(db));
}

export function judgeGuarantees(facts: GuaranteeFacts): Guarantee[] {
  const { role, version } = facts;
  const otherRole =
    'Let `latchkey migrate` run as the owner (MIGRATION_DATABASE_URL) and the service as APP_ROLE (DATABASE_URL), ' +
    'which is granted no other role.';
  // Until Postgres 15 whoever may create roles may also make itself a member of any that is no superuser.
  const mayJoinOwner = facts.mayCreateRoles && version < 160_000;
  return [
    {
      name: 'The service connects as a role that is no superuser and cannot become one',
      kept: facts.superusers.length === 0,
      remedy: `${told(role, facts.superusers)} is as good as a superuser, from whom history is not protected. ${otherRole}`,
    },
    {
      name: "The service's role does not bypass row security",
      kept: facts.bypassingRowSecurity.length === 0,
      remedy: `${told(role, facts.bypassingRowSecurity)} has BYPASSRLS. Take it away: alter role … nobypassrls.`,
    },
    {
      name: "The service's role neither owns history nor may write to it directly",
      kept: facts.owners.length + facts.writers.length === 0 && !mayJoinOwner,
      remedy: whyNotOwnerless(facts, otherRole),
    },
    {
      name: 'The trigger that keeps history append-only is there, as it was made, and always fires',
      kept: facts.isTriggerSound,
      remedy:
        'Somebody has disabled, changed or dropped history_append_only or its function. Find out who and why, verify the ' +
        'history (GET /v1/history/verify), and make them anew as the first migration does.',
    },
    {
      name: 'Foreign keys are checked in the sessions of the service',
      kept: facts.replicationRole === 'origin',
      remedy:
        `session_replication_role is ${facts.replicationRole} for this role or database, and only a superuser can change it: ` +
        'alter role … reset session_replication_role, or alter database … reset session_replication_role.',
    },
    {
      name: 'Only roles that were granted it may connect to the database',
      kept: !facts.mayPublicConnect,
      remedy:
        'Any role of the cluster may connect, listen to notices of changes and send floods of them. `latchkey migrate` revokes ' +
        'that where its role owns the database; otherwise, as the owner: revoke connect on database … from public.',
    },
    durability('fsync', facts.fsync),
    durability('full_page_writes', facts.fullPageWrites),
    durability('synchronous_commit', facts.synchronousCommit),
    {
      name: 'Postgres is of a version that Latchkey is tested with, 15 to 18',
      kept: version >= 150_000 && version < 190_000,
      remedy: `This one is ${version}. Use a version from 15 to 18.`,
    },
  ];
}

function whyNotOwnerless({ role, owners, writers }: GuaranteeFacts, otherRole: string): string {
  if (owners.length > 0) return `${told(role, owners)} owns history, or what it lies in. ${otherRole}`;
  if (writers.length > 0) {
    return (
      `${told(role, writers)} may write to history without its chain. \`latchkey migrate\` sets the rights of APP_ROLE ` +
      'right; what others were granted has to be revoked by hand.'
    );
  }
  return `Role ${role} has CREATEROLE, and before Postgres 16 can make itself a member of the owner: alter role … nocreaterole.`;
}

/** `app`, or `app (as owner)` where it has to become another role first. */
function told(role: string, found: readonly string[]): string {
  // A superuser is everybody; then the rest of the list says nothing.
  if (found.includes(role) || found.length === 0) return `Role ${role}`;
  const shown = found.slice(0, 3).join(', ');
  return `Role ${role} (as ${found.length > 3 ? `${shown} …` : shown})`;
}

function durability(setting: string, value: string): Guarantee {
  return {
    name: `${setting} is on`,
    kept: value !== 'off',
    remedy: `It is off, so a crash can lose what was acknowledged. Set ${setting} to on, for the whole server and for this role.`,
  };
}

/** BEFORE, and UPDATE, DELETE and TRUNCATE, for each statement: as `pg_trigger.tgtype` has it. */
const triggerType = 2 + 16 + 8 + 32;

/** The first migration's text of `history_refuse_change()`, with single spaces. */
const refusal =
  "begin raise exception 'history is append-only: % is refused', tg_op using errcode = 'insufficient_privilege'; end";

/** Postgres's own roles whose members can write files or run programs as the server does. */
const reachingTheServer = sql`('pg_execute_server_program', 'pg_write_server_files')`;

/**
 * What a role may become counts as what it is: `set role` is one statement. The role that logged in is looked at, because
 * `set role none` leads back to it.
 */
async function readFacts(db: Db): Promise<GuaranteeFacts> {
  const { rows } = await sql<GuaranteeFacts>`
    with reachable as (
      select oid, rolname, rolsuper, rolbypassrls from pg_roles where pg_has_role(session_user, oid, 'MEMBER')
    ),
    owned as (
      select relowner as owner from pg_class
      where oid in ('public.history'::regclass, 'public.history_heads'::regclass)
      union all
      select proowner from pg_proc where pronamespace = 'public'::regnamespace and proname like 'history\\_%'
      union all
      select nspowner from pg_namespace where oid = 'public'::regnamespace
      union all
      select datdba from pg_database where datname = current_database()
    ),
    writers as (
      select rolname from reachable, unnest(array['public.history', 'public.history_heads']) as target
      where has_any_column_privilege(oid, target, 'INSERT, UPDATE')
        or has_table_privilege(oid, target, 'DELETE, TRUNCATE, TRIGGER')
    )
    select session_user::text as "role",
      array(select rolname::text from reachable where rolsuper or rolname in ${reachingTheServer} order by 1)
        as "superusers",
      array(select rolname::text from reachable where rolbypassrls order by 1) as "bypassingRowSecurity",
      array(select rolname::text from reachable where oid in (select owner from owned) order by 1) as "owners",
      array(select distinct rolname::text from writers order by 1) as "writers",
      (select rolcreaterole from pg_roles where rolname = session_user) as "mayCreateRoles",
      exists (
        select from pg_trigger as trigger join pg_proc as function on function.oid = trigger.tgfoid
        where trigger.tgrelid = 'public.history'::regclass and trigger.tgname = 'history_append_only'
          and trigger.tgenabled = 'A' and trigger.tgtype = ${triggerType} and trigger.tgqual is null
          and cardinality(trigger.tgattr::int2[]) = 0
          and btrim(regexp_replace(function.prosrc, '\\s+', ' ', 'g')) = ${refusal}
      ) as "isTriggerSound",
      current_setting('session_replication_role') as "replicationRole",
      has_database_privilege('public', current_database(), 'connect') as "mayPublicConnect",
      current_setting('fsync') as "fsync",
      current_setting('full_page_writes') as "fullPageWrites",
      current_setting('synchronous_commit') as "synchronousCommit",
      current_setting('server_version_num')::int as "version"`.execute(db);
  const [facts] = rows;
  if (facts === undefined) throw new Error('the database told nothing about itself');
  return facts;
}

/** With LATCHKEY_STRICT the service does not start on a database that does not protect history. */
export class GuaranteeBroken extends Error {
  override readonly name = 'GuaranteeBroken';
}

/** Logs each guarantee that the database does not keep. @throws GuaranteeBroken if there is one and `isStrict` */
export async function requireGuarantees(
  db: Db,
  { isStrict, logger }: { isStrict: boolean; logger: { warn(line: string): void } },
): Promise<void> {
  const broken = (await checkGuarantees(db)).filter((guarantee) => !guarantee.kept);
  const lines = broken.map(({ name, remedy }) => `Not so: ${name}. ${remedy}`);
  if (isStrict && lines.length > 0) {
    throw new GuaranteeBroken(
      ['LATCHKEY_STRICT is set, and the database does not protect history:', ...lines].join('\n  '),
    );
  }
  for (const line of lines) logger.warn(line);
}
