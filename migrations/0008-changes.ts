import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

/**
 * Besides the id a notice now tells whose it is, `key_… org_…`, so that a backend that follows changes hears of its own
 * organization's and of no other's. What belongs to no organization is told by its id alone.
 */
const notices = `
create or replace function notify_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if tg_op = 'TRUNCATE' then
    perform pg_notify('latchkey_changes', '*');
  elsif tg_table_name = 'organizations' then
    perform pg_notify('latchkey_changes', old.id || ' ' || old.id);
  else
    perform pg_notify('latchkey_changes', concat_ws(' ', old.id, old.organization_id));
  end if;
  return null;
end $$;
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(notices).execute(db);
}
