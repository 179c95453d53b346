import { type Kysely, sql } from 'kysely';

// Frozen: this file describes a step as it was first released. Later changes are later files.

/** The trace of the request that caused a delivery, as it is passed on to the webhook. */
const traces = `
alter table webhook_deliveries add column traceparent text collate "C",
  add constraint webhook_deliveries_traceparent_form check (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$');
`;

export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(traces).execute(db);
}
