import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

/**
 * When a key was last used stands in the row that counts its uses: one row is written for each key that was used, and not
 * two. Free space in the pages lets Postgres count up a row without touching the indexes.
 */
const lastUse = `
alter table usage_hours add column last_used_at timestamptz;
alter table usage_days add column last_used_at timestamptz;
insert into usage_hours (organization_id, partner_id, key_id, hour, allowed, denied, rate_limited, last_used_at)
  select key.organization_id, key.partner_id, key.id, date_trunc('hour', used.at, 'UTC'), 0, 0, 0, used.at
  from key_last_uses as used join api_keys as key on key.id = used.key_id
  on conflict (key_id, hour) do update set last_used_at = excluded.last_used_at;
drop table key_last_uses;
alter table usage_hours set (fillfactor = 50);
drop index usage_hours_by_hour;
create index usage_hours_by_hour on usage_hours using brin (hour);
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(lastUse).execute(db);
}
