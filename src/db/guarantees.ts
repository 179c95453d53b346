import { sql } from 'kysely';
import type { Db } from './client.ts';

/** Something that the promises about records rest on, and whether the database has it. */
export interface Guarantee {
  name: string;
  kept: boolean;
  /** What is wrong and what to do about it. */
  remedy: string;
}

interface Facts {
  superuser: boolean;
  bypassesRls: boolean;
  ownsHistory: boolean;
  mayWriteHistory: boolean;
  triggersAlways: boolean;
  fsync: string;
  fullPageWrites: string;
  synchronousCommit: string;
  version: number;
}

/** Looks at the database as the service's own role sees it. Needs a current schema. */
export async function checkGuarantees(db: Db): Promise<Guarantee[]> {
  const facts = await readFacts(db);
  const otherRole =
    'Let `latchkey migrate` run as the owner (MIGRATION_DATABASE_URL) and the service as APP_ROLE (DATABASE_URL).';
  return [
    {
      name: 'The service connects as a role that is no superuser and does not bypass row security',
      kept: !facts.superuser && !facts.bypassesRls,
      remedy: `History is not protected from such a role. ${otherRole}`,
    },
    {
      name: "The service's role neither owns history nor may write to it directly",
      kept: !facts.ownsHistory && !facts.mayWriteHistory,
      remedy: `History is not protected from its own role. ${otherRole}`,
    },
    {
      name: 'The triggers that keep history append-only are there and always fire',
      kept: facts.triggersAlways,
      remedy: 'Somebody has disabled or dropped them. Restore the schema from a backup or the first migration.',
    },
    durability('fsync', facts.fsync),
    durability('full_page_writes', facts.fullPageWrites),
    durability('synchronous_commit', facts.synchronousCommit),
    {
      name: 'Postgres is of a version that Latchkey is tested with, 15 to 18',
      kept: facts.version >= 150_000 && facts.version < 190_000,
      remedy: `This one is ${facts.version}. Use a version from 15 to 18.`,
    },
  ];
}

function durability(setting: string, value: string): Guarantee {
  return {
    name: `${setting} is on`,
    kept: value !== 'off',
    remedy: `With ${setting}=off a crash can lose what was acknowledged. Set it to on.`,
  };
}

async function readFacts(db: Db): Promise<Facts> {
  const { rows } = await sql<Facts>`
    select role.rolsuper as "superuser",
      role.rolbypassrls as "bypassesRls",
      pg_has_role(current_user, history.relowner, 'MEMBER') as "ownsHistory",
      has_table_privilege('public.history', 'INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER') as "mayWriteHistory",
      (select coalesce(bool_and(tgenabled = 'A'), false) from pg_trigger
        where tgrelid = history.oid and not tgisinternal) as "triggersAlways",
      current_setting('fsync') as "fsync",
      current_setting('full_page_writes') as "fullPageWrites",
      current_setting('synchronous_commit') as "synchronousCommit",
      current_setting('server_version_num')::int as "version"
    from pg_roles as role, pg_class as history
    where role.rolname = current_user and history.oid = 'public.history'::regclass`.execute(db);
  const [facts] = rows;
  if (facts === undefined) throw new Error('there is no table public.history');
  return facts;
}
