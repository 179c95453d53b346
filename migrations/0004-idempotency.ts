import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

const idempotency = `
create table idempotency_keys (
  address bytea primary key,
  request_hash bytea not null,
  reply json not null,
  created_at timestamptz not null,
  constraint idempotency_keys_address_length check (octet_length(address) = 32),
  constraint idempotency_keys_request_hash_length check (octet_length(request_hash) = 32)
);
create index idempotency_keys_by_time on idempotency_keys (created_at);
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(idempotency).execute(db);
}
