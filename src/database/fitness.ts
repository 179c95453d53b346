import { sql } from 'kysely';
import type { Db } from './client.ts';
import { isSetBySession } from './session.ts';

/** A setting of the role or the database, by name. */
export interface ForeignSetting {
  name: string;
  value: string;
}

/**
 * Settings of the role or the database that Latchkey overrides in its sessions. Behind a transaction pooler a
 * connection may be used on which they were not overridden.
 */
export async function foreignSettings(db: Db): Promise<ForeignSetting[]> {
  const { rows } = await sql<ForeignSetting>`
    select split_part(setting, '=', 1) as name, substr(setting, strpos(setting, '=') + 1) as value
    from pg_db_role_setting, unnest(setconfig) as setting
    where setdatabase in (0, (select oid from pg_database where datname = current_database()))
      and setrole in (0, (select oid from pg_roles where rolname = session_user))
    order by 1, 2`.execute(db);
  return rows.filter(({ name }) => isSetBySession(name));
}

/** This database cannot be used; another one is needed. The message says what to do. */
export class DatabaseUnfit extends Error {
  override readonly name = 'DatabaseUnfit';
}

/** The database responds but accepts no writes. The message says what to do. */
export class ReadOnlyDatabase extends Error {
  override readonly name = 'ReadOnlyDatabase';

  constructor() {
    super('The database is a read-only standby. DATABASE_URL must lead to the primary.');
  }
}

/** @throws ReadOnlyDatabase on a standby, or if transactions cannot write for another reason */
export async function requireWritable(db: Db): Promise<void> {
  const { rows } = await sql<{ isReadOnly: boolean }>`
    select pg_is_in_recovery() or current_setting('transaction_read_only')::boolean as "isReadOnly"`.execute(db);
  if (rows[0]?.isReadOnly !== false) throw new ReadOnlyDatabase();
}

/** @throws DatabaseUnfit if the database cannot store every text */
export async function requireUtf8(db: Db): Promise<void> {
  const { rows } = await sql<{ encoding: string; name: string }>`
    select current_setting('server_encoding') as encoding, quote_ident(current_database()) as name`.execute(db);
  const { encoding = '', name = '' } = rows[0] ?? {};
  if (encoding === 'UTF8') return;
  throw new DatabaseUnfit(
    `The database has the encoding ${encoding}, but Latchkey needs UTF8. The encoding of a database cannot be changed: ` +
      `create another one with \`create database ${name} template template0 encoding 'UTF8'\`, and set DATABASE_URL to it.`,
  );
}
