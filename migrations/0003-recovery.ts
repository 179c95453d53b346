import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

// What is purged stays as a row without anything that could check or show the key: history and usage still name it.
const purge = `
alter table api_keys
  add column purged_at timestamptz,
  alter column tag drop not null,
  alter column tag_keyring_id drop not null,
  add constraint api_keys_purged_is_deleted check (purged_at is null or deleted_at is not null),
  add constraint api_keys_purged_wiped check (
    case when purged_at is null then num_nulls(tag, tag_keyring_id) = 0
      else num_nonnulls(tag, tag_keyring_id, argon2id_hash, sealed) = 0 end
  );
create index api_keys_to_purge on api_keys (deleted_at) where deleted_at is not null and purged_at is null;
create index api_keys_to_expire on api_keys (expires_at) where expires_at is not null and deleted_at is null;
`;

const recovery = `
create table recovery_requests (
  id text collate "C" primary key,
  organization_id text collate "C" not null,
  key_id text collate "C",
  partner_id text collate "C",
  subject_deleted_at timestamptz not null,
  details text not null,
  status text not null,
  respond_by timestamptz not null,
  created_at timestamptz not null,
  created_by jsonb not null,
  answered_at timestamptz,
  answered_by jsonb,
  note text,
  constraint recovery_requests_organization_fk foreign key (organization_id) references organizations (id),
  constraint recovery_requests_key_fk foreign key (key_id) references api_keys (id),
  constraint recovery_requests_partner_fk foreign key (organization_id, partner_id)
    references partners (organization_id, id),
  constraint recovery_requests_id_form check (id ~ '^recovery_[0-7][0-9a-hjkmnp-tv-z]{25}$'),
  constraint recovery_requests_one_subject check (num_nonnulls(key_id, partner_id) = 1),
  constraint recovery_requests_status_known check (status in ('open', 'approved', 'declined')),
  constraint recovery_requests_answer_whole check (
    num_nonnulls(answered_at, answered_by) = case status when 'open' then 0 else 2 end
  ),
  constraint recovery_requests_declined_with_note check (status <> 'declined' or note is not null)
);
create unique index recovery_requests_open_key on recovery_requests (key_id) where status = 'open';
create unique index recovery_requests_open_partner on recovery_requests (partner_id) where status = 'open';
create index recovery_requests_by_organization on recovery_requests (organization_id, id desc);
create index recovery_requests_due on recovery_requests (respond_by, id) where status = 'open';
`;

// Each says that an event was recorded, in the event's own transaction: so it is recorded once, whoever comes first.
const once = `
create table expiry_notices (
  key_id text collate "C" not null,
  expires_at timestamptz not null,
  days_ahead smallint not null,
  constraint expiry_notices_pk primary key (key_id, expires_at, days_ahead)
);

create table deleted_key_uses (
  key_id text collate "C" not null,
  hour timestamptz not null,
  constraint deleted_key_uses_pk primary key (key_id, hour)
);
create index deleted_key_uses_by_hour on deleted_key_uses (hour);

alter table usage_hours add column after_deletion bigint not null default 0;
alter table usage_days add column after_deletion bigint not null default 0;
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(purge).execute(db);
  await sql.raw(recovery).execute(db);
  await sql.raw(once).execute(db);
}
