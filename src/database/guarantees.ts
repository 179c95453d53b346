import { sql } from 'kysely';
import type { Db } from './client.ts';

/** A precondition of what Latchkey guarantees about history, and whether the database meets it. */
export interface Guarantee {
  /** The guarantee as a sentence that is true if it is kept. */
  name: string;
  kept: boolean;
  /** What is wrong and what to do about it. */
  remedy: string;
}

/** What the database says about the service's role and about itself. Roles are listed by name. */
export interface GuaranteeFacts {
  /** The role with which the service logged in. */
  role: string;
  /** Superusers that the role is or may become. History is not protected from them. */
  superusers: string[];
  bypassingRowSecurity: string[];
  /** Owners of history, of its functions, or of its schema or database, which the role is or may become. */
  owners: string[];
  /** Roles that may write history without `history_append()`. */
  writers: string[];
  mayCreateRoles: boolean;
  areTriggersSound: boolean;
  /** With any value but `origin`, foreign keys are not checked. */
  replicationRole: string;
  mayPublicConnect: boolean;
  fsync: string;
  fullPageWrites: string;
  synchronousCommit: string;
  /** The value of `server_version_num`. */
  version: number;
}

/** Checks the database with the service's own role. Needs a current schema. */
export async function checkGuarantees(db: Db): Promise<Guarantee[]> {
  return judgeGuarantees(await readFacts(db));
}

export function judgeGuarantees(facts: GuaranteeFacts): Guarantee[] {
  const { role, version } = facts;
  const otherRole =
    'Run `latchkey migrate` as the owner (MIGRATION_DATABASE_URL) and the service as APP_ROLE (DATABASE_URL), ' +
    'which has no other role.';
  // Until Postgres 15, a role with CREATEROLE may make itself a member of any role that is not a superuser.
  const mayJoinOwner = facts.mayCreateRoles && version < 160_000;
  return [
    {
      name: 'The service connects with a role that is not a superuser and cannot become one',
      kept: facts.superusers.length === 0,
      remedy: `${describeRole(role, facts.superusers)} has the rights of a superuser, and history is not protected from superusers. ${otherRole}`,
    },
    {
      name: "The service's role does not bypass row security",
      kept: facts.bypassingRowSecurity.length === 0,
      remedy: `${describeRole(role, facts.bypassingRowSecurity)} has BYPASSRLS. Remove it: alter role … nobypassrls.`,
    },
    {
      name: "The service's role neither owns history nor may write to it directly",
      kept: facts.owners.length + facts.writers.length === 0 && !mayJoinOwner,
      remedy: whyNotOwnerless(facts, otherRole),
    },
    {
      name: 'The triggers that keep history append-only exist, are unchanged and always fire',
      kept: facts.areTriggersSound,
      remedy:
        'history_append_only, history_keep or one of their functions was disabled, changed or dropped. Find out who did that and ' +
        'why, verify the history (GET /v1/history/verify), and create them again as in the first migration.',
    },
    {
      name: 'Foreign keys are checked in the sessions of the service',
      kept: facts.replicationRole === 'origin',
      remedy:
        `session_replication_role is ${facts.replicationRole} for this role or database, and only a superuser can change it: ` +
        'alter role … reset session_replication_role, or alter database … reset session_replication_role.',
    },
    {
      name: 'Only roles with an explicit grant may connect to the database',
      kept: !facts.mayPublicConnect,
      remedy:
        'Any role of the cluster may connect, listen to change notifications and flood them. `latchkey migrate` revokes ' +
        'this if its role owns the database. Otherwise run as the owner: revoke connect on database … from public.',
    },
    durability('fsync', facts.fsync),
    durability('full_page_writes', facts.fullPageWrites),
    durability('synchronous_commit', facts.synchronousCommit),
    {
      name: 'Latchkey is tested with this version of Postgres (15 to 18)',
      kept: version >= 150_000 && version < 190_000,
      remedy: `This is version ${version}. Use a version from 15 to 18.`,
    },
  ];
}

function whyNotOwnerless({ role, owners, writers }: GuaranteeFacts, otherRole: string): string {
  if (owners.length > 0)
    return `${describeRole(role, owners)} owns history, its functions, its schema or its database. ${otherRole}`;
  if (writers.length > 0) {
    return (
      `${describeRole(role, writers)} may write to history directly. \`latchkey migrate\` corrects the privileges of APP_ROLE; ` +
      'revoke those of other roles by hand.'
    );
  }
  return `Role ${role} has CREATEROLE, and before Postgres 16 can make itself a member of the owner: alter role … nocreaterole.`;
}

/** `Role app`, or `Role app (as owner)` if it must become another role first. */
function describeRole(role: string, found: readonly string[]): string {
  // A superuser may become every role, so a long list says nothing.
  if (found.includes(role) || found.length === 0) return `Role ${role}`;
  const shown = found.slice(0, 3).join(', ');
  return `Role ${role} (as ${found.length > 3 ? `${shown} …` : shown})`;
}

function durability(setting: string, value: string): Guarantee {
  return {
    name: `${setting} is on`,
    kept: value !== 'off',
    remedy: `It is off, so a crash can lose acknowledged changes. Set ${setting} to on, for the whole server and for this role.`,
  };
}

/** As in the first migration: the name, `pg_trigger.tgtype`, and the function's text with single spaces. */
const triggers = [
  {
    name: 'history_append_only',
    // BEFORE, and UPDATE and TRUNCATE, for each statement.
    type: 2 + 16 + 32,
    text: "begin raise exception 'history is append-only: % is refused', tg_op using errcode = 'insufficient_privilege'; end",
  },
  {
    name: 'history_keep',
    // BEFORE DELETE, for each row.
    type: 1 + 2 + 8,
    text:
      'begin if exists (select from public.history_archives where chain = old.chain and last_sequence >= old.sequence) then ' +
      'return old; end if; ' +
      "raise exception 'history is append-only: % is refused', tg_op using errcode = 'insufficient_privilege'; end",
  },
];

/** Postgres's own roles whose members can write files or run programs as the server does. */
const reachingTheServer = sql`('pg_execute_server_program', 'pg_write_server_files')`;

/**
 * A role that may become another one counts as that role: `set role` is one statement. The role that logged in is
 * checked, because `set role none` returns to it.
 */
async function readFacts(db: Db): Promise<GuaranteeFacts> {
  const { rows } = await sql<GuaranteeFacts>`
    with reachable as (
      select oid, rolname, rolsuper, rolbypassrls from pg_roles where pg_has_role(session_user, oid, 'MEMBER')
    ),
    owned as (
      select relowner as owner from pg_class
      where oid in ('public.history'::regclass, 'public.history_heads'::regclass, 'public.history_archives'::regclass)
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
      not exists (
        select from unnest(${triggers.map(({ name }) => name)}::text[], ${triggers.map(({ type }) => type)}::int[],
          ${triggers.map(({ text }) => text)}::text[]) as expected (name, type, text)
        where not exists (
          select from pg_trigger as trigger join pg_proc as function on function.oid = trigger.tgfoid
          where trigger.tgrelid = 'public.history'::regclass and trigger.tgname = expected.name
            and trigger.tgenabled = 'A' and trigger.tgtype = expected.type and trigger.tgqual is null
            and cardinality(trigger.tgattr::int2[]) = 0
            and btrim(regexp_replace(function.prosrc, '\\s+', ' ', 'g')) = expected.text
        )
      ) as "areTriggersSound",
      current_setting('session_replication_role') as "replicationRole",
      has_database_privilege('public', current_database(), 'connect') as "mayPublicConnect",
      current_setting('fsync') as "fsync",
      current_setting('full_page_writes') as "fullPageWrites",
      current_setting('synchronous_commit') as "synchronousCommit",
      current_setting('server_version_num')::int as "version"`.execute(db);
  const [facts] = rows;
  if (facts === undefined) throw new Error('The database returned no facts about itself');
  return facts;
}

/** LATCHKEY_STRICT is set, and the database does not protect history. */
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
