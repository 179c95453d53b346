import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

const id = (kind: string): string => `'^${kind}_[0-7][0-9a-hjkmnp-tv-z]{25}$'`;

const endpoints = `
create table webhook_endpoints (
  id text collate "C" primary key,
  organization_id text collate "C" not null,
  partner_id text collate "C",
  url text not null,
  events text[] collate "C" not null,
  description text,
  sealed bytea,
  sealed_keyring_id text collate "C",
  previous_sealed bytea,
  previous_sealed_keyring_id text collate "C",
  previous_until timestamptz,
  created_at timestamptz not null,
  created_by jsonb not null,
  failing_since timestamptz,
  disabled_at timestamptz,
  disabled_reason text,
  deleted_at timestamptz,
  constraint webhook_endpoints_organization_fk foreign key (organization_id) references organizations (id),
  constraint webhook_endpoints_partner_fk foreign key (organization_id, partner_id)
    references partners (organization_id, id),
  constraint webhook_endpoints_id_form check (id ~ ${id('webhook')}),
  constraint webhook_endpoints_events_form check (
    cardinality(events) > 0 and array_to_string(events, ' ', '') ~ '^([*]|[a-z_]+[.][a-z_]+( [a-z_]+[.][a-z_]+)*)$'
  ),
  constraint webhook_endpoints_sealed_whole check ((sealed is null) = (sealed_keyring_id is null)),
  constraint webhook_endpoints_previous_whole check (
    num_nonnulls(previous_sealed, previous_sealed_keyring_id, previous_until) in (0, 3)
  ),
  constraint webhook_endpoints_deleted_wiped check (
    case when deleted_at is null then sealed is not null else num_nonnulls(sealed, previous_sealed) = 0 end
  ),
  constraint webhook_endpoints_disabled_whole check ((disabled_at is null) = (disabled_reason is null)),
  constraint webhook_endpoints_disabled_reason_known check (disabled_reason in ('requested', 'gone', 'failing'))
);
create index webhook_endpoints_by_organization on webhook_endpoints (organization_id, id desc);
`;

// No foreign key leads to history: a delivery only names the event's place in its chain.
const deliveries = `
create table webhook_deliveries (
  id text collate "C" primary key,
  endpoint_id text collate "C" not null,
  sequence bigint not null,
  action text collate "C" not null,
  payload text not null,
  status text not null,
  attempts integer not null default 0,
  failures integer not null default 0,
  due_at timestamptz not null,
  leased_until timestamptz,
  created_at timestamptz not null,
  finished_at timestamptz,
  constraint webhook_deliveries_endpoint_fk foreign key (endpoint_id) references webhook_endpoints (id),
  constraint webhook_deliveries_id_form check (id ~ ${id('delivery')}),
  constraint webhook_deliveries_status_known check (status in ('pending', 'delivered', 'failed')),
  constraint webhook_deliveries_finished_whole check ((finished_at is null) = (status = 'pending')),
  constraint webhook_deliveries_leased_is_pending check (leased_until is null or status = 'pending'),
  constraint webhook_deliveries_counts check (failures between 0 and attempts)
);
create index webhook_deliveries_by_endpoint on webhook_deliveries (endpoint_id, id desc);
create index webhook_deliveries_due on webhook_deliveries (endpoint_id, due_at) where status = 'pending';
create index webhook_deliveries_failed on webhook_deliveries (endpoint_id, created_at) where status = 'failed';
create index webhook_deliveries_by_time on webhook_deliveries (created_at);

create table webhook_attempts (
  delivery_id text collate "C" not null,
  number integer not null,
  at timestamptz not null,
  status integer,
  reason text,
  duration_ms bigint not null,
  reply text,
  constraint webhook_attempts_pk primary key (delivery_id, number),
  constraint webhook_attempts_delivery_fk foreign key (delivery_id) references webhook_deliveries (id) on delete cascade,
  constraint webhook_attempts_one_outcome check (num_nonnulls(status, reason) = 1)
);
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(endpoints).execute(db);
  await sql.raw(deliveries).execute(db);
}
