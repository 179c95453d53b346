import { type Kysely, sql } from 'kysely';

// This file may change until the first release. After it, every change is a new migration.

export const kind = 'expand';

const id = (kind: string): string => `'^${kind}_[0-7][0-9a-hjkmnp-tv-z]{25}$'`;

const tables = `
-- Whether a JSON value is an actor that the API can return. Tables accept no other values.
create function is_actor_snapshot(p_actor jsonb) returns boolean language sql immutable parallel safe as $$
  select coalesce(jsonb_typeof(p_actor) = 'object'
    and p_actor ->> 'type' in ('admin', 'operator', 'verifier', 'api_key', 'system')
    and jsonb_typeof(p_actor -> 'id') = 'string'
    and jsonb_typeof(p_actor -> 'name') = 'string'
    and jsonb_typeof(p_actor -> 'email') in ('string', 'null')
    and coalesce(jsonb_typeof(p_actor -> 'issuer'), 'string') = 'string'
    and coalesce(jsonb_typeof(p_actor -> 'subject'), 'string') = 'string', false)
$$;

create function is_actor(p_actor jsonb) returns boolean language sql immutable parallel safe as $$
  select public.is_actor_snapshot(p_actor)
    and (not p_actor ? 'createdByRoot' or public.is_actor_snapshot(p_actor -> 'createdByRoot'))
    and coalesce(jsonb_typeof(p_actor -> 'createdByIds'), 'array') = 'array'
    and not exists (
      select from jsonb_path_query(p_actor, '$.createdByIds[*]') as id where jsonb_typeof(id) <> 'string')
$$;

create function is_creator_chain(p_chain jsonb) returns boolean language sql immutable parallel safe as $$
  select case when jsonb_typeof(p_chain) <> 'array' or p_chain = '[]' then false
    else not exists (select from jsonb_array_elements(p_chain) as creator where not public.is_actor_snapshot(creator)) end
$$;

-- Identifies this database. It differs after pg_restore, even in the same cluster.
create function database_home() returns text language sql stable as $$
  select system_identifier || '/' || (select oid from pg_database where datname = current_database())
  from pg_control_system()
$$;

create table installation (
  one boolean primary key default true,
  -- The database in which this installation was created. A restored copy keeps it and is recognized by it.
  home text not null default database_home(),
  token_prefix text not null,
  -- The keyring entry of the first start: the only one that authenticates itself.
  root_keyring_id text collate "C" not null,
  created_at timestamptz not null default now(),
  constraint installation_one_row check (one)
);

create table keyring_entries (
  id text collate "C" primary key,
  check_value bytea not null,
  mac bytea not null,
  mac_keyring_id text collate "C" not null,
  first_seen_at timestamptz not null default now(),
  constraint keyring_entries_check_value_length check (octet_length(check_value) = 32)
);

create table organizations (
  id text collate "C" primary key,
  name text not null,
  key_reveal text not null,
  leak_response text not null default 'notify',
  self_service boolean not null default false,
  max_key_lifetime_seconds integer,
  default_key_lifetime_seconds integer,
  idle_suspend_after_days integer,
  rate_limit_requests integer not null,
  rate_limit_window_seconds integer not null,
  created_at timestamptz not null,
  created_by jsonb not null,
  constraint organizations_created_by_actor check (is_actor(created_by)),
  constraint organizations_id_form check (id ~ ${id('org')}),
  constraint organizations_key_reveal_known check (key_reveal in ('allowed', 'never')),
  constraint organizations_leak_response_known check (leak_response in ('notify', 'suspend', 'revoke')),
  constraint organizations_key_lifetime_range check (
    max_key_lifetime_seconds between 1 and 1000000000 and default_key_lifetime_seconds between 1 and 1000000000
      and default_key_lifetime_seconds <= max_key_lifetime_seconds
  ),
  constraint organizations_idle_suspend_range check (idle_suspend_after_days between 1 and 3650),
  constraint organizations_rate_limit_range check (
    rate_limit_requests between 1 and 1000000000 and rate_limit_window_seconds between 1 and 86400
  )
);

create table partners (
  id text collate "C" primary key,
  organization_id text collate "C" not null,
  -- Collation "C": lower() does not depend on the database's locale. Addresses are ASCII.
  email text collate "C" not null,
  name text,
  external_id text collate "C",
  metadata json not null default '{}',
  permissions text[] not null,
  rate_limit_requests integer,
  rate_limit_window_seconds integer,
  created_at timestamptz not null,
  created_by jsonb not null,
  suspended_at timestamptz,
  deleted_at timestamptz,
  constraint partners_created_by_actor check (is_actor(created_by)),
  constraint partners_organization_fk foreign key (organization_id) references organizations (id),
  constraint partners_organization_id_key unique (organization_id, id),
  constraint partners_id_form check (id ~ ${id('partner')}),
  constraint partners_external_id_form check (
    char_length(external_id) between 1 and 255 and external_id !~ '[\\u0001-\\u001f\\u007f-\\u009f]'
  ),
  constraint partners_metadata_object check (json_typeof(metadata) = 'object'),
  constraint partners_metadata_size check (octet_length(metadata::text) <= 16384),
  constraint partners_permissions_known check (
    permissions in (array['read'], array['write'], array['read', 'write'])
  ),
  constraint partners_rate_limit_whole check ((rate_limit_requests is null) = (rate_limit_window_seconds is null)),
  constraint partners_rate_limit_range check (
    rate_limit_requests between 1 and 1000000000 and rate_limit_window_seconds between 1 and 86400
  )
);
create unique index partners_live_email on partners (organization_id, lower(email)) where deleted_at is null;
create unique index partners_live_external_id on partners (organization_id, external_id) where deleted_at is null;

-- Hashes of the scopes of a key and of its members of metadata that can be searched, for the index on them.
create function key_labels(p_organization text, p_scopes text[], p_metadata json) returns bigint[]
language sql immutable parallel safe as $$
  select array(
    select hashtextextended(p_organization || ' scope ' || scope, 0) from unnest(p_scopes) as scope
    union all
    select hashtextextended(p_organization || ' metadata ' || json_build_array(key, value #>> '{}')::text, 0)
    from json_each(p_metadata) where json_typeof(value) in ('string', 'number', 'boolean'))
$$;

create table api_keys (
  id text collate "C" primary key,
  organization_id text collate "C" not null,
  partner_id text collate "C",
  permission text collate "C" not null,
  slot smallint not null,
  -- An imported key's token was made elsewhere.
  origin text collate "C" not null default 'created',
  name text,
  -- The name without regard to case (src/keys/policy.ts). Collation "C": prefixes are ranges of the index.
  folded_name text collate "C",
  tag bytea,
  tag_keyring_id text collate "C",
  argon2id_hash text,
  -- Authenticates the columns that decide about the key (src/credentials/record-mac.ts).
  mac bytea,
  mac_keyring_id text collate "C",
  sealed bytea,
  sealed_keyring_id text collate "C",
  -- The SHA-256 of an imported key's token, sealed, so that \`latchkey rekey\` can make a new tag.
  digest_sealed bytea,
  digest_keyring_id text collate "C",
  last_four text collate "C",
  expires_at timestamptz,
  allowed_ips text[] not null,
  scopes text[] not null default '{}',
  -- json and not jsonb, which prints 1e308 with 309 digits and so could exceed the size limit on reading.
  metadata json not null,
  replaces_key_id text collate "C",
  -- The first key of this chain of rotations: the limit is counted under its id. Null: this key is the first.
  limit_bucket_id text collate "C",
  rate_limit_requests integer,
  rate_limit_window_seconds integer,
  created_at timestamptz not null,
  created_by jsonb not null,
  suspended_at timestamptz,
  suspended_reason text,
  -- When it was last resumed or restored. The time without use counts from here.
  resumed_at timestamptz,
  deleted_at timestamptz,
  delete_reason text,
  purged_at timestamptz,
  constraint api_keys_created_by_actor check (is_actor(created_by)),
  constraint api_keys_metadata_object check (json_typeof(metadata) = 'object'),
  constraint api_keys_allowed_ips_whole check (array_position(allowed_ips, null) is null),
  constraint api_keys_scopes_whole check (array_position(scopes, null) is null and cardinality(scopes) <= 50),
  constraint api_keys_organization_fk foreign key (organization_id) references organizations (id),
  constraint api_keys_partner_fk foreign key (organization_id, partner_id) references partners (organization_id, id),
  constraint api_keys_replaces_fk foreign key (replaces_key_id) references api_keys (id),
  constraint api_keys_limit_bucket_fk foreign key (limit_bucket_id) references api_keys (id),
  constraint api_keys_limit_bucket_whole check ((replaces_key_id is null) = (limit_bucket_id is null)),
  constraint api_keys_metadata_size check (octet_length(metadata::text) <= 16384),
  constraint api_keys_id_form check (id ~ ${id('key')}),
  constraint api_keys_permission_known check (permission in ('read', 'write', 'read_write')),
  constraint api_keys_default_row_is_read_write check ((partner_id is null) = (permission = 'read_write')),
  constraint api_keys_suspended_reason_whole check (suspended_reason is null or suspended_at is not null),
  constraint api_keys_two_slots check (slot in (1, 2)),
  constraint api_keys_tag_length check (octet_length(tag) = 32),
  constraint api_keys_sealed_whole check ((sealed is null) = (sealed_keyring_id is null)),
  constraint api_keys_origin_known check (origin in ('created', 'imported')),
  constraint api_keys_digest_whole check ((digest_sealed is null) = (digest_keyring_id is null)),
  constraint api_keys_origin_whole check (
    case origin when 'created' then digest_sealed is null and last_four is not null else argon2id_hash is null end
  ),
  constraint api_keys_live_hash check (num_nonnulls(argon2id_hash, digest_sealed) > 0 or deleted_at is not null),
  constraint api_keys_delete_reason_whole check ((deleted_at is null) = (delete_reason is null)),
  constraint api_keys_delete_reason_known check (
    delete_reason in ('unused', 'rotated', 'compromised', 'other', 'owner_request', 'partner_deleted', 'permission_removed',
      'expired')
  ),
  constraint api_keys_compromised_wiped check (
    delete_reason is distinct from 'compromised' or num_nonnulls(argon2id_hash, sealed, digest_sealed) = 0
  ),
  constraint api_keys_purged_is_deleted check (purged_at is null or deleted_at is not null),
  constraint api_keys_purged_wiped check (
    case when purged_at is null then num_nulls(tag, tag_keyring_id, mac, mac_keyring_id) = 0
      else num_nonnulls(tag, tag_keyring_id, argon2id_hash, mac, mac_keyring_id, sealed, digest_sealed) = 0 end
  ),
  constraint api_keys_rate_limit_whole check ((rate_limit_requests is null) = (rate_limit_window_seconds is null)),
  constraint api_keys_rate_limit_range check (
    rate_limit_requests between 1 and 1000000000 and rate_limit_window_seconds between 1 and 86400
  )
);
create unique index api_keys_live_slot on api_keys (organization_id, partner_id, permission, slot)
  nulls not distinct where deleted_at is null;
-- No two imported keys have the same token, except that a token of a compromised key can be imported again.
create unique index api_keys_imported_tag on api_keys (tag, (case when delete_reason = 'compromised' then id end))
  nulls not distinct where origin = 'imported' and tag is not null;
create index api_keys_imported on api_keys (organization_id) where origin = 'imported';
create index api_keys_by_owner on api_keys (organization_id, partner_id, id desc);
-- Lists read this index from the newest key on, and the rows of a page only. Few filtered keys are found by the filter's
-- own index below (src/keys/search.ts).
create index api_keys_by_organization on api_keys (organization_id, id desc) include (partner_id, permission, folded_name,
  last_four, created_at, expires_at, suspended_at, deleted_at, delete_reason, purged_at);
create index api_keys_suspended on api_keys (organization_id, id) include (deleted_at, suspended_reason)
  where suspended_at is not null and purged_at is null;
create index api_keys_deleted on api_keys (organization_id, id) where deleted_at is not null and purged_at is null;
create index api_keys_by_name on api_keys (organization_id, folded_name, id) where purged_at is null;
create index api_keys_by_last_four on api_keys (organization_id, last_four, id) where purged_at is null;
create index api_keys_by_creation on api_keys (organization_id, created_at, id) where purged_at is null;
create index api_keys_by_expiry on api_keys (organization_id, expires_at, id) where purged_at is null;
create index api_keys_by_labels on api_keys using gin (key_labels(organization_id, scopes, metadata))
  with (fastupdate = off) where purged_at is null;
-- Index-only scans need a recent vacuum.
alter table api_keys set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02);
create index api_keys_to_purge on api_keys (deleted_at) where deleted_at is not null and purged_at is null;
create index api_keys_to_expire on api_keys (expires_at) where expires_at is not null and deleted_at is null;

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
  mac bytea not null,
  mac_keyring_id text collate "C" not null,
  last_four text not null,
  created_at timestamptz not null,
  created_by jsonb not null,
  creator_chain jsonb not null,
  expires_at timestamptz,
  deleted_at timestamptz,
  constraint access_tokens_created_by_actor check (is_actor(created_by)),
  constraint access_tokens_organization_fk foreign key (organization_id) references organizations (id),
  constraint access_tokens_id_form check (id ~ ${id('token')}),
  constraint access_tokens_role_known check (role in ('operator', 'admin', 'verifier')),
  constraint access_tokens_scopes_known check (
    scopes in (
      array['read'], array['write'], array['reveal'],
      array['read', 'write'], array['read', 'reveal'], array['write', 'reveal'],
      array['read', 'write', 'reveal']
    )
  ),
  constraint access_tokens_creator_chain_actors check (is_creator_chain(creator_chain)),
  constraint access_tokens_tag_length check (octet_length(tag) = 32),
  constraint access_tokens_operator_is_global check (role <> 'operator' or organization_id is null),
  constraint access_tokens_admin_has_organization check (role <> 'admin' or organization_id is not null),
  constraint access_tokens_admin_is_a_person check (role <> 'admin' or email is not null)
);
create index access_tokens_by_organization on access_tokens (organization_id, id desc);
create index access_tokens_to_expire on access_tokens (expires_at) where expires_at is not null and deleted_at is null;

create table claims (
  id text collate "C" primary key,
  organization_id text collate "C" not null,
  partner_id text collate "C",
  key_id text collate "C" not null,
  expires_at timestamptz not null,
  created_at timestamptz not null,
  created_by jsonb not null,
  code_hash bytea,
  sealed bytea,
  sealed_keyring_id text collate "C",
  mac bytea,
  mac_keyring_id text collate "C",
  ended_at timestamptz,
  end_reason text,
  redeemed_from text,
  constraint claims_created_by_actor check (is_actor(created_by)),
  constraint claims_organization_fk foreign key (organization_id) references organizations (id),
  constraint claims_partner_fk foreign key (organization_id, partner_id) references partners (organization_id, id),
  constraint claims_key_fk foreign key (key_id) references api_keys (id),
  constraint claims_id_form check (id ~ ${id('claim')}),
  constraint claims_code_hash_length check (octet_length(code_hash) = 32),
  constraint claims_end_reason_known check (end_reason in ('redeemed', 'expired', 'cancelled')),
  constraint claims_end_whole check ((ended_at is null) = (end_reason is null)),
  constraint claims_redeemed_from_whole check ((end_reason is not distinct from 'redeemed') = (redeemed_from is not null)),
  constraint claims_ended_wiped check (
    num_nonnulls(code_hash, sealed, sealed_keyring_id, mac, mac_keyring_id) = case when ended_at is null then 5 else 0 end
  )
);
create unique index claims_pending_key on claims (key_id) where ended_at is null;
create index claims_by_organization on claims (organization_id, id desc);
create index claims_by_key on claims (key_id, id desc);
create index claims_by_partner on claims (partner_id, id desc) where partner_id is not null;
create index claims_to_expire on claims (expires_at) where ended_at is null;
`;

/**
 * The sets of columns by which history is filtered. Each has an index over a hash of the chain and the columns, then
 * the sequence: it is a third of the size, and a combination without events is found to be empty at once. No index is
 * partial: Postgres keeps no statistics for the expression of a partial index.
 */
const historyFilters = [
  ['key_id'],
  ['partner_id'],
  ['actor_id'],
  ['action'],
  ['key_id', 'partner_id'],
  ['key_id', 'actor_id'],
  ['key_id', 'action'],
  ['partner_id', 'actor_id'],
  ['partner_id', 'action'],
  ['actor_id', 'action'],
  ['key_id', 'actor_id', 'action'],
  ['partner_id', 'actor_id', 'action'],
];

function historyIndex(columns: string[]): string {
  const name = `history_by_${columns.map((column) => column.replace('_id', '')).join('_')}`;
  const hash = `hashtextextended(${['chain', ...columns].join(" || ' ' || ")}, 0)`;
  return `create index ${name} on history (${hash}, sequence);\n`;
}

const history = String.raw`
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
-- Vacuum marks pages as visible to all, so that Postgres can count events from an index. The default waits for a fifth
-- of the table.
) with (autovacuum_vacuum_insert_scale_factor = 0.02);
-- Finds the sequence number that belongs to a time.
create index history_by_time on history (chain, at, sequence);
-- Lists and counts the viewers of a key without reading its events.
create index history_reveals on history (chain, key_id, actor_id, sequence) where action = 'key.revealed';
${historyFilters.map(historyIndex).join('')}
create function history_refuse_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'history is append-only: % is refused', tg_op using errcode = 'insufficient_privilege';
end $$;

create trigger history_append_only before update or truncate on history
  for each statement execute function history_refuse_change();
alter table history enable always trigger history_append_only;

-- The beginning of a chain that was moved to a file by latchkey history archive (src/history/archives). The MAC covers
-- all other columns.
create table history_archives (
  id text collate "C" primary key,
  chain text collate "C" not null,
  first_sequence bigint not null,
  last_sequence bigint not null,
  -- Of the last event.
  hash bytea not null,
  file_sha256 bytea not null,
  file_bytes bigint not null,
  -- Of the rows in history_archive_states.
  states_sha256 bytea not null,
  archived_at timestamptz not null,
  mac bytea not null,
  mac_keyring_id text collate "C" not null,
  constraint history_archives_id_form check (id ~ ${id('archive')}),
  constraint history_archives_first_key unique (chain, first_sequence),
  constraint history_archives_last_key unique (chain, last_sequence),
  constraint history_archives_range check (first_sequence between 1 and last_sequence),
  constraint history_archives_hash_length check (
    octet_length(hash) = 32 and octet_length(file_sha256) = 32 and octet_length(states_sha256) = 32
  )
);

-- The records of a chain as they were at its last archived event: a replay starts from them. text and not json, because
-- the digest in history_archives covers the text.
create table history_archive_states (
  archive_id text collate "C" not null,
  kind text collate "C" not null,
  id text collate "C" not null,
  state text not null,
  constraint history_archive_states_pk primary key (archive_id, kind, id)
);

-- Events are removed only after a row of history_archives says that a file has them.
create function history_refuse_removal() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from public.history_archives where chain = old.chain and last_sequence >= old.sequence) then
    return old;
  end if;
  raise exception 'history is append-only: % is refused', tg_op using errcode = 'insufficient_privilege';
end $$;

create trigger history_keep before delete on history for each row execute function history_refuse_removal();
alter table history enable always trigger history_keep;

-- Locks the chain and returns the sequence number, time and previous hash of its next event. The time is the database's,
-- in milliseconds, and never runs backwards within a chain.
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

-- Whether a JSON text is canonical (RFC 8785): names sorted by UTF-16 code units, each once, and numbers in its form.
-- U+10FFFF before U+E000 to U+FFFF sorts these after all characters that UTF-16 writes with surrogates.
create function history_is_canonical(p_value json) returns boolean
language plpgsql immutable as $$
declare
  kind text := json_typeof(p_value);
  spelled text;
  size double precision;
  shortest numeric;
  shorter numeric;
  unit numeric;
  member record;
  place text collate "C";
  last_place text collate "C";
begin
  if kind = 'object' then
    for member in select key, value from json_each(p_value) loop
      place := regexp_replace(member.key, U&'([\E000-\FFFF])', U&'\+10FFFF' || '\1', 'g');
      if place <= last_place or not public.history_is_canonical(member.value) then return false; end if;
      last_place := place;
    end loop;
  elsif kind = 'array' then
    for member in select value from json_array_elements(p_value) loop
      if not public.history_is_canonical(member.value) then return false; end if;
    end loop;
  elsif kind = 'number' then
    spelled := p_value::text;
    size := abs(spelled::double precision);
    shortest := size::text::numeric;
    -- RFC 8785 accepts the shorter decimal in the middle between two doubles, such as 1e+23; Postgres does not print it.
    if size > 9007199254740992 and size < 1e40 then
      unit := ('1e' || length(shortest::text) - length(rtrim(shortest::text, '0')) + 1)::numeric;
      shorter := div(shortest, unit) * unit;
      shortest := case size when shorter::double precision then shorter
        when (shorter + unit)::double precision then shorter + unit else shortest end;
    end if;
    return spelled <> '-0' and shortest = abs(spelled::numeric)
      and spelled ~ case when size = 0 or size >= 1e-6 and size < 1e21
        then '^-?(0|[1-9][0-9]*)([.][0-9]*[1-9])?$' else '^-?[1-9]([.][0-9]*[1-9])?e[+-][1-9][0-9]*$' end;
  end if;
  return true;
end $$;

-- Why a text is not a valid event; null if it is valid. Raises an error for a text that is not JSON, and for U+0000.
-- This function and the one above are called only by history_append(), with its settings.
create function history_flaw(p_canonical text) returns text language plpgsql immutable as $$
declare
  event jsonb;
  actor jsonb;
  request jsonb;
  -- Pairs of backslashes are removed, so that each remaining backslash begins an escape.
  escapes text;
begin
  if octet_length(p_canonical) > 131072 then return 'it is longer than 131072 bytes'; end if;
  escapes := replace(p_canonical, '\\', '');
  if escapes ~ '\\(/|u(?!00(0[0-7be-f]|1[0-9a-f])))'
    or regexp_replace(escapes, '"(?:[^"\\]|\\.)*"', '', 'g') ~ '\s' then
    return 'it is not in canonical form';
  end if;
  event := p_canonical::jsonb;
  if jsonb_typeof(event) <> 'object' then return 'it is not an object'; end if;
  if array(select json_object_keys(p_canonical::json)) <>
    array['action', 'actor', 'at', 'details', 'id', 'keyId', 'organizationId', 'partnerId', 'request', 'sequence'] then
    return 'it does not have the members of an event in their order';
  end if;
  actor := event -> 'actor';
  request := event -> 'request';
  return case
    when jsonb_typeof(event -> 'sequence') <> 'number' then 'sequence is not a number'
    when jsonb_typeof(event -> 'at') <> 'string'
      or event ->> 'at' !~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.]\d{3}Z$' then 'at is not a time in milliseconds'
    when jsonb_typeof(event -> 'id') <> 'string' or event ->> 'id' !~ ${id('event')} then 'id is not that of an event'
    when event ->> 'organizationId' !~ ${id('org')} then 'organizationId is not that of an organization'
    when event ->> 'keyId' !~ ${id('key')} then 'keyId is not that of a key'
    when event ->> 'partnerId' !~ ${id('partner')} then 'partnerId is not that of a partner'
    when jsonb_typeof(event -> 'action') <> 'string' or event ->> 'action' !~ '^[a-z_]{1,60}[.][a-z_]{1,60}$'
      then 'action is not of the form word.word'
    when jsonb_typeof(actor) <> 'object' or jsonb_typeof(actor -> 'type') is distinct from 'string'
      or jsonb_typeof(actor -> 'id') is distinct from 'string' or jsonb_typeof(actor -> 'name') is distinct from 'string'
      or coalesce(jsonb_typeof(actor -> 'email') not in ('string', 'null'), true)
      or actor ->> 'type' !~ '^[a-z_]{1,60}$' or length(actor ->> 'id') not between 1 and 1000
      then 'actor is not one who can act'
    when jsonb_typeof(event -> 'details') <> 'object' then 'details is not an object'
    when not public.history_is_canonical(p_canonical::json) then 'it is not in canonical form'
    when jsonb_typeof(request) = 'null' then null
    when jsonb_typeof(request) <> 'object' or jsonb_typeof(request -> 'id') is distinct from 'string'
      or jsonb_typeof(request -> 'ip') is distinct from 'string'
      or coalesce(jsonb_typeof(request -> 'userAgent') not in ('string', 'null'), true)
      or exists (select from jsonb_each_text(request) where length(value) > 1024) then 'request is not the facts of one'
  end;
end $$;

-- The only way to insert an event. Every column comes from the canonical text; hash = SHA-256(previous hash || text).
create function history_append(p_chain text, p_canonical text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set extra_float_digits = 1 as $$
declare
  head public.history_heads;
  flaw constant text := public.history_flaw(p_canonical);
  event jsonb;
  event_at timestamptz;
  new_hash bytea;
begin
  if flaw is not null then
    raise exception 'history: the text is not an event: %', flaw using errcode = 'check_violation';
  end if;
  event := p_canonical::jsonb;
  event_at := (event ->> 'at')::timestamptz;
  select * into strict head from public.history_heads h where h.chain = p_chain for no key update;
  if (event -> 'sequence')::numeric is distinct from head.sequence + 1 then
    raise exception 'history: sequence % where % is due', event ->> 'sequence', head.sequence + 1
      using errcode = 'check_violation';
  end if;
  if coalesce(event ->> 'organizationId', 'installation') is distinct from p_chain then
    raise exception 'history: the event names another organization than its chain' using errcode = 'check_violation';
  end if;
  -- If the clock was set back, events keep the time of the last event until the clock has passed it.
  if to_char(event_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') <> event ->> 'at'
    or event_at < head.at or event_at > greatest(clock_timestamp(), head.at)
    or (event_at <> head.at and event_at < clock_timestamp() - interval '1 minute') then
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

revoke all on function history_begin(text), history_append(text, text), history_flaw(text), history_is_canonical(json),
  history_refuse_change(), history_refuse_removal() from public;
`;

/**
 * Locks the caller's access token until the transaction ends: its deletion waits for the transaction, and later
 * transactions wait for the deletion. PL/pgSQL reads the row with a snapshot taken after the wait; one statement would
 * not.
 */
const credentials = `
create function hold_credential(p_id text)
returns table (role text, organization_id text, expires_at timestamptz, deleted_at timestamptz)
language plpgsql as $$
begin
  perform pg_catalog.pg_advisory_xact_lock_shared(
    pg_catalog.hashtext('latchkey credential'), pg_catalog.hashtext(p_id));
  return query select t.role, t.organization_id, t.expires_at, t.deleted_at
    from public.access_tokens t where t.id = p_id;
end $$;
revoke all on function hold_credential(text) from public;
`;

const notified = ['organizations', 'partners', 'api_keys', 'access_tokens'];

/**
 * Notifies the replicas of changed rows. The payload is the row's id and its organization's, `key_… org_…`, or only the
 * row's id. New rows cause no notification: no replica has cached them.
 */
const changeNotices = `
create function notify_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
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

// No foreign keys and no triggers: counting a use changes no key and invalidates no cache.
const usage = `
create table usage_hours (
  organization_id text collate "C" not null,
  partner_id text collate "C",
  key_id text collate "C" not null,
  hour timestamptz not null,
  allowed bigint not null,
  denied bigint not null,
  rate_limited bigint not null,
  -- The denied verifications whose reason was that the key is deleted.
  after_deletion bigint not null default 0,
  constraint usage_hours_pk primary key (key_id, hour)
) with (fillfactor = 50);
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
  -- The denied verifications whose reason was that the key is deleted.
  after_deletion bigint not null default 0,
  constraint usage_days_pk primary key (key_id, day)
);
create index usage_days_by_partner on usage_days (partner_id, day) where partner_id is not null;

create table access_token_uses (
  access_token_id text collate "C" primary key,
  last_used_at timestamptz not null
) with (fillfactor = 50);
-- One row for each key, so that keys without use are found by the same index.
create table key_last_uses (
  key_id text collate "C" not null,
  organization_id text collate "C" not null,
  key_created_at timestamptz not null,
  last_used_at timestamptz,
  constraint key_last_uses_pk primary key (key_id)
);
create index key_last_uses_by_time on key_last_uses (organization_id, (coalesce(last_used_at, key_created_at)), key_id);

create function add_key_last_use() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  insert into public.key_last_uses (key_id, organization_id, key_created_at) values (new.id, new.organization_id, new.created_at)
    on conflict do nothing;
  return null;
end $$;
revoke all on function add_key_last_use() from public;
create trigger api_keys_add_last_use after insert on api_keys for each row execute function add_key_last_use();
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
  constraint recovery_requests_created_by_actor check (is_actor(created_by)),
  constraint recovery_requests_answered_by_actor check (answered_by is null or is_actor(answered_by)),
  constraint recovery_requests_organization_fk foreign key (organization_id) references organizations (id),
  constraint recovery_requests_key_fk foreign key (key_id) references api_keys (id),
  constraint recovery_requests_partner_fk foreign key (organization_id, partner_id)
    references partners (organization_id, id),
  constraint recovery_requests_id_form check (id ~ ${id('recovery')}),
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

// Each row marks that an event was recorded. It is inserted in the event's transaction, so the event is recorded once.
const recordedOnce = `
create table expiry_notices (
  credential_id text collate "C" not null,
  expires_at timestamptz not null,
  days_ahead smallint not null,
  constraint expiry_notices_pk primary key (credential_id, expires_at, days_ahead)
);

create table idle_notices (
  key_id text collate "C" not null,
  idle_since timestamptz not null,
  announced_at timestamptz not null,
  constraint idle_notices_pk primary key (key_id)
);

create table deleted_key_uses (
  key_id text collate "C" not null,
  hour timestamptz not null,
  constraint deleted_key_uses_pk primary key (key_id, hour)
);
create index deleted_key_uses_by_hour on deleted_key_uses (hour);

create table leak_reports (
  key_id text collate "C" not null,
  -- UTC.
  day timestamptz not null,
  -- SHA-256 of where the key was found.
  place bytea not null,
  action text not null,
  constraint leak_reports_pk primary key (key_id, day, place),
  constraint leak_reports_place_length check (octet_length(place) = 32),
  constraint leak_reports_action_known check (action in ('notify', 'suspend', 'revoke'))
);
create index leak_reports_by_day on leak_reports (day);
`;

const idempotency = `
create table idempotency_keys (
  address bytea primary key,
  request_mac bytea not null,
  request_mac_keyring_id text collate "C" not null,
  organization_id text collate "C",
  created text[] not null,
  has_plaintext boolean not null,
  sealed bytea,
  sealed_keyring_id text collate "C",
  created_at timestamptz not null,
  constraint idempotency_keys_address_length check (octet_length(address) = 32),
  constraint idempotency_keys_request_mac_length check (octet_length(request_mac) = 32),
  constraint idempotency_keys_sealed_whole check ((sealed is null) = (sealed_keyring_id is null))
);
create index idempotency_keys_by_time on idempotency_keys (created_at);
create index idempotency_keys_with_plaintext on idempotency_keys (created_at) where has_plaintext and sealed is not null;
`;

const jobRuns = `
create table job_runs (
  name text collate "C" primary key,
  first_seen_at timestamptz not null default now(),
  last_started_at timestamptz,
  last_succeeded_at timestamptz,
  last_failed_at timestamptz,
  last_error text,
  last_count bigint,
  last_duration_ms bigint
);
`;

/** What the last state audit found. */
const stateDifferenceCounts = `
create table state_difference_counts (
  kind text collate "C" primary key,
  count bigint not null,
  at timestamptz not null,
  constraint state_difference_counts_kind_known check (
    kind in ('organization', 'access_token', 'partner', 'key', 'history_archive')
  )
);
`;

/** How far each chain was found sound, so that the next verification starts there (src/history/verified-point.ts). */
const verifiedPoints = `
create table verified_points (
  chain text collate "C" primary key,
  sequence bigint not null,
  hash bytea not null,
  verified_at timestamptz not null,
  fully_verified_at timestamptz,
  mac bytea not null,
  mac_keyring_id text collate "C" not null,
  constraint verified_points_chain_form check (chain = 'installation' or chain ~ ${id('org')}),
  constraint verified_points_sequence_positive check (sequence > 0),
  constraint verified_points_hash_length check (octet_length(hash) = 32)
);
`;

const webhooks = `
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
  constraint webhook_endpoints_created_by_actor check (is_actor(created_by)),
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

-- No foreign key refers to history: a delivery has the event's sequence number, and its body is made from the event.
create table webhook_deliveries (
  id text collate "C" primary key,
  endpoint_id text collate "C" not null,
  sequence bigint not null,
  action text collate "C" not null,
  mac bytea not null,
  mac_keyring_id text collate "C" not null,
  status text not null,
  attempts integer not null default 0,
  failures integer not null default 0,
  due_at timestamptz not null,
  leased_until timestamptz,
  created_at timestamptz not null,
  finished_at timestamptz,
  traceparent text collate "C",
  constraint webhook_deliveries_endpoint_fk foreign key (endpoint_id) references webhook_endpoints (id),
  constraint webhook_deliveries_id_form check (id ~ ${id('delivery')}),
  constraint webhook_deliveries_status_known check (status in ('pending', 'delivered', 'failed')),
  constraint webhook_deliveries_finished_whole check ((finished_at is null) = (status = 'pending')),
  constraint webhook_deliveries_leased_is_pending check (leased_until is null or status = 'pending'),
  constraint webhook_deliveries_traceparent_form check (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$'),
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

// Counts, not history: rows are updated, and removed when they are old.
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
  last_ip text,
  constraint refused_attempts_caller_shown check (
    caller is null
    or (caller ->> 'type' in ('admin', 'operator', 'verifier', 'api_key')
      and jsonb_typeof(caller -> 'name') in ('string', 'null') and is_actor_snapshot(caller || '{"name": ""}'))
  ),
  constraint refused_attempts_organization_fk foreign key (organization_id) references organizations (id),
  constraint refused_attempts_id_form check (id ~ ${id('refusal')}),
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
  for (const statements of [
    tables,
    history,
    credentials,
    changeNotices,
    usage,
    recovery,
    recordedOnce,
    idempotency,
    jobRuns,
    stateDifferenceCounts,
    verifiedPoints,
    webhooks,
    refusedAttempts,
  ]) {
    await sql.raw(statements).execute(db);
  }
}
