import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

// Counts, and so no part of history: they are added to, and they go when they are old.
const refusedAttempts = `
create table refused_attempts (
  id text collate "C" primary key,
  organization_id text collate "C",
  hour timestamptz not null,
  caller_id text collate "C",
  caller jsonb,
  operation text collate "C",
  code text collate "C" not null,
  count bigint not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  last_ip text not null,
  constraint refused_attempts_organization_fk foreign key (organization_id) references organizations (id),
  constraint refused_attempts_id_form check (id ~ '^refusal_[0-7][0-9a-hjkmnp-tv-z]{25}$'),
  constraint refused_attempts_caller_whole check (
    num_nulls(caller_id, caller, operation) in (0, 3) and caller ->> 'id' is not distinct from caller_id
  ),
  constraint refused_attempts_count_positive check (count > 0),
  constraint refused_attempts_times check (first_at <= last_at)
);
create unique index refused_attempts_of_hour on refused_attempts (organization_id, hour, caller_id, operation, code)
  nulls not distinct;
create index refused_attempts_by_organization on refused_attempts (organization_id, id desc);
create index refused_attempts_by_caller on refused_attempts (organization_id, caller_id, id desc);
create index refused_attempts_by_hour on refused_attempts (hour);
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(refusedAttempts).execute(db);
}
