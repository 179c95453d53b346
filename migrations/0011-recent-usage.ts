import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

/**
 * What was counted in the last seconds, many keys in a row, before it is added to the rows of their hours: that is then done
 * once for all the seconds that have gathered.
 */
const recent = `
create table usage_recent (
  id bigint generated always as identity primary key,
  part text collate "C" not null,
  hour timestamptz not null,
  key_ids text[] collate "C" not null,
  allowed bigint[],
  denied bigint[],
  rate_limited bigint[],
  after_deletion bigint[],
  last_used integer[] not null
);
create index usage_recent_by_part on usage_recent (part, id);
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(recent).execute(db);
}
