import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

const notified = ['organizations', 'partners', 'api_keys', 'access_tokens'];

const notices = `
-- Tells every replica which record to read anew, whoever changed it. New rows are not told of: nobody knows them yet.
create function notify_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_notify('latchkey_changes', case when tg_op = 'TRUNCATE' then '*' else old.id end);
  return null;
end $$;
revoke all on function notify_change() from public;
${notified
  .map(
    (table) => `
create trigger ${table}_notify after update or delete on ${table} for each row execute function notify_change();
create trigger ${table}_notify_all after truncate on ${table} for each statement execute function notify_change();
alter table ${table} enable always trigger ${table}_notify;
alter table ${table} enable always trigger ${table}_notify_all;`,
  )
  .join('')}
`;

// A table of its own, without foreign keys and triggers: counting touches no key and nobody's memory of one.
const usage = `
create table usage_hours (
  organization_id text collate "C" not null,
  partner_id text collate "C",
  key_id text collate "C" not null,
  hour timestamptz not null,
  allowed bigint not null,
  denied bigint not null,
  rate_limited bigint not null,
  constraint usage_hours_pk primary key (key_id, hour)
);
create index usage_hours_by_partner on usage_hours (partner_id, hour) where partner_id is not null;
create index usage_hours_by_hour on usage_hours (hour);

create table usage_days (
  organization_id text collate "C" not null,
  partner_id text collate "C",
  key_id text collate "C" not null,
  day timestamptz not null,
  allowed bigint not null,
  denied bigint not null,
  rate_limited bigint not null,
  constraint usage_days_pk primary key (key_id, day)
);
create index usage_days_by_partner on usage_days (partner_id, day) where partner_id is not null;

create table key_last_uses (
  key_id text collate "C" primary key,
  at timestamptz not null
);
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(notices).execute(db);
  await sql.raw(usage).execute(db);
}
