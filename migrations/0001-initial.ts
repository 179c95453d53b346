import { type Kysely, sql } from 'kysely';

// Frozen: this file describes the schema as it was first released. Later changes are later files.

const id = (kind: string): string => `'^${kind}_[0-7][0-9a-hjkmnp-tv-z]{25}$'`;

const tables = `
create table installation (
  one boolean primary key default true,
  token_prefix text not null,
  created_at timestamptz not null default now(),
  constraint installation_one_row check (one)
);

create table keyring_entries (
  id text collate "C" primary key,
  check_value bytea not null,
  first_seen_at timestamptz not null default now(),
  constraint keyring_entries_check_value_length check (octet_length(check_value) = 32)
);

create table organizations (
  id text collate "C" primary key,
  name text not null,
  key_reveal text not null,
  rate_limit_requests integer not null,
  rate_limit_window_seconds integer not null,
  created_at timestamptz not null,
  created_by jsonb not null,
  constraint organizations_id_form check (id ~ ${id('org')}),
  constraint organizations_key_reveal_known check (key_reveal in ('allowed', 'never')),
  constraint organizations_rate_limit_range check (
    rate_limit_requests between 1 and 1000000000 and rate_limit_window_seconds between 1 and 86400
  )
);

create table partners (
  id text collate "C" primary key,
  organization_id text collate "C" not null,
  email text not null,
  name text,
  permissions text[] not null,
  rate_limit_requests integer,
  rate_limit_window_seconds integer,
  created_at timestamptz not null,
  created_by jsonb not null,
  suspended_at timestamptz,
  deleted_at timestamptz,
  constraint partners_organization_fk foreign key (organization_id) references organizations (id),
  constraint partners_organization_id_key unique (organization_id, id),
  constraint partners_id_form check (id ~ ${id('partner')}),
  constraint partners_permissions_known check (
    permissions in (array['read'], array['write'], array['read', 'write'])
  ),
  constraint partners_rate_limit_whole check ((rate_limit_requests is null) = (rate_limit_window_seconds is null)),
  constraint partners_rate_limit_range check (
    rate_limit_requests between 1 and 1000000000 and rate_limit_window_seconds between 1 and 86400
  )
);
create unique index partners_live_email on partners (organization_id, lower(email)) where deleted_at is null;

create table api_keys (
  id text collate "C" primary key,
  organization_id text collate "C" not null,
  partner_id text collate "C",
  permission text not null,
  slot smallint not null,
  name text,
  tag bytea not null,
  tag_keyring_id text collate "C" not null,
  argon2id_hash text,
  sealed bytea,
  sealed_keyring_id text collate "C",
  last_four text not null,
  expires_at timestamptz,
  allowed_ips text[] not null,
  metadata jsonb not null,
  rate_limit_requests integer,
  rate_limit_window_seconds integer,
  created_at timestamptz not null,
  created_by jsonb not null,
  suspended_at timestamptz,
  deleted_at timestamptz,
  delete_reason text,
  constraint api_keys_organization_fk foreign key (organization_id) references organizations (id),
  constraint api_keys_partner_fk foreign key (organization_id, partner_id) references partners (organization_id, id),
  constraint api_keys_id_form check (id ~ ${id('key')}),
  constraint api_keys_permission_known check (permission in ('read', 'write', 'read_write')),
  constraint api_keys_default_row_is_read_write check ((partner_id is null) = (permission = 'read_write')),
  constraint api_keys_two_slots check (slot in (1, 2)),
  constraint api_keys_tag_length check (octet_length(tag) = 32),
  constraint api_keys_sealed_whole check ((sealed is null) = (sealed_keyring_id is null)),
  constraint api_keys_live_hash check (argon2id_hash is not null or deleted_at is not null),
  constraint api_keys_delete_reason_whole check ((deleted_at is null) = (delete_reason is null)),
  constraint api_keys_delete_reason_known check (
    delete_reason in ('unused', 'rotated', 'compromised', 'other', 'partner_deleted', 'permission_removed')
  ),
  constraint api_keys_compromised_wiped check (
    delete_reason is distinct from 'compromised' or (argon2id_hash is null and sealed is null)
  ),
  constraint api_keys_rate_limit_whole check ((rate_limit_requests is null) = (rate_limit_window_seconds is null)),
  constraint api_keys_rate_limit_range check (
    rate_limit_requests between 1 and 1000000000 and rate_limit_window_seconds between 1 and 86400
  )
);
create unique index api_keys_live_slot on api_keys (organization_id, partner_id, permission, slot)
  nulls not distinct where deleted_at is null;
create index api_keys_by_owner on api_keys (organization_id, partner_id, id desc);

create table access_tokens (
  id text collate "C" primary key,
  organization_id text collate "C",
  role text not null,
  scopes text[] not null,
  name text not null,
  email text,
  tag bytea not null,
  tag_keyring_id text collate "C" not null,
  argon2id_hash text not null,
  last_four text not null,
  created_at timestamptz not null,
  created_by jsonb not null,
  expires_at timestamptz,
  deleted_at timestamptz,
  constraint access_tokens_organization_fk foreign key (organization_id) references organizations (id),
  constraint access_tokens_id_form check (id ~ ${id('token')}),
  constraint access_tokens_role_known check (role in ('operator', 'admin', 'verifier')),
  constraint access_tokens_scopes_known check (scopes in (array['read'], array['write'], array['read', 'write'])),
  constraint access_tokens_tag_length check (octet_length(tag) = 32),
  constraint access_tokens_operator_is_global check (role <> 'operator' or organization_id is null),
  constraint access_tokens_admin_has_organization check (role <> 'admin' or organization_id is not null),
  constraint access_tokens_admin_is_a_person check (role <> 'admin' or email is not null)
);
create index access_tokens_by_organization on access_tokens (organization_id, id desc);
`;

const history = `
create table history_heads (
  chain text collate "C" primary key,
  sequence bigint not null,
  hash bytea not null,
  at timestamptz not null,
  constraint history_heads_chain_form check (chain = 'installation' or chain ~ ${id('org')}),
  constraint history_heads_hash_length check (octet_length(hash) = 32)
);

create table history (
  chain text collate "C" not null,
  sequence bigint not null,
  id text collate "C" not null,
  at timestamptz not null,
  action text collate "C" not null,
  actor_id text collate "C" not null,
  key_id text collate "C",
  partner_id text collate "C",
  canonical text not null,
  previous_hash bytea not null,
  hash bytea not null,
  constraint history_pk primary key (chain, sequence),
  constraint history_id_key unique (id),
  constraint history_sequence_positive check (sequence > 0),
  constraint history_hash_length check (octet_length(hash) = 32 and octet_length(previous_hash) = 32)
);
create index history_by_key on history (chain, key_id, sequence desc) where key_id is not null;
create index history_by_partner on history (chain, partner_id, sequence desc) where partner_id is not null;
create index history_by_actor on history (chain, actor_id, sequence desc);
create index history_by_action on history (chain, action, sequence desc);
create index history_by_time on history (chain, at);

create function history_refuse_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'history is append-only: % is refused', tg_op using errcode = 'insufficient_privilege';
end $$;

create trigger history_append_only before update or delete or truncate on history
  for each statement execute function history_refuse_change();
alter table history enable always trigger history_append_only;

-- Locks the chain and tells what the next event must say of itself. The time is the database's, in milliseconds,
-- and never runs backwards within a chain.
create function history_begin(p_chain text, out next_sequence bigint, out previous_hash bytea, out at_ms bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into public.history_heads (chain, sequence, hash, at)
    values (p_chain, 0, decode(repeat('00', 32), 'hex'), 'epoch') on conflict do nothing;
  select h.sequence + 1, h.hash,
         floor(extract(epoch from greatest(clock_timestamp(), h.at)) * 1000)::bigint
    into strict next_sequence, previous_hash, at_ms
    from public.history_heads h where h.chain = p_chain for no key update;
end $$;

-- The only way into history. Every column is filled from the canonical text; hash = SHA-256(previous hash || text).
create function history_append(p_chain text, p_canonical text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  head public.history_heads;
  event jsonb := p_canonical::jsonb;
  event_at timestamptz := (event ->> 'at')::timestamptz;
  new_hash bytea;
begin
  select * into strict head from public.history_heads h where h.chain = p_chain for no key update;
  if (event ->> 'sequence')::bigint is distinct from head.sequence + 1 then
    raise exception 'history: sequence % where % is due', event ->> 'sequence', head.sequence + 1
      using errcode = 'check_violation';
  end if;
  if coalesce(event ->> 'organizationId', 'installation') is distinct from p_chain then
    raise exception 'history: the event names another organization than its chain' using errcode = 'check_violation';
  end if;
  if event_at is null or event_at < head.at
    or event_at not between clock_timestamp() - interval '1 minute'
      and greatest(clock_timestamp(), head.at) + interval '1 minute' then
    raise exception 'history: time % is not now', event ->> 'at' using errcode = 'check_violation';
  end if;
  new_hash := sha256(head.hash || convert_to(p_canonical, 'UTF8'));
  insert into public.history
    (chain, sequence, id, at, action, actor_id, key_id, partner_id, canonical, previous_hash, hash)
  values (p_chain, head.sequence + 1, event ->> 'id', event_at, event ->> 'action', event -> 'actor' ->> 'id',
    event ->> 'keyId', event ->> 'partnerId', p_canonical, head.hash, new_hash);
  update public.history_heads h set sequence = head.sequence + 1, hash = new_hash, at = event_at
    where h.chain = p_chain;
end $$;

revoke all on function history_begin(text), history_append(text, text), history_refuse_change() from public;
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(tables).execute(db);
  await sql.raw(history).execute(db);
}
