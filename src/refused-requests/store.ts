import { sql } from 'kysely';
import { pruneInBatches } from '../database/batches.ts';
import { type Db, type Tx, writeTransaction } from '../database/client.ts';
import type { RefusedCaller } from '../database/tables/refused-attempts.ts';
import type { Transactor } from '../database/work.ts';
import { newId, type OrganizationId, type RefusalId } from '../domain/ids.ts';
import { dayMs } from '../lib/durations.ts';

/** Attempts of one caller at one operation that were rejected for one reason within an hour. */
export interface RefusedAttempts {
  organizationId: OrganizationId | null;
  hour: Date;
  /** Null for several callers that share a row because there were too many; `operation` is then null too. */
  caller: RefusedCaller | null;
  operation: string | null;
  code: string;
  count: number;
  firstAt: Date;
  lastAt: Date;
  /** Null if unknown. */
  lastIp: string | null;
}

export interface ListedRefusals extends RefusedAttempts {
  id: RefusalId;
}

/**
 * Adds a batch to the stored counts in one statement. An unknown organization, which only operators can select, counts
 * for the installation. Rows are sorted, so that replicas do not deadlock.
 */
export async function addRefusals(db: Db, refusals: readonly RefusedAttempts[]): Promise<void> {
  const batch = refusals.map((refusal) => ({ id: newId('refusal'), ...refusal }));
  const insert = sql`
    insert into refused_attempts
      (id, organization_id, hour, caller_id, caller, operation, code, count, first_at, last_at, last_ip)
    select min(batch.id), organization.id, hour, caller ->> 'id', (array_agg(caller order by "lastAt" desc))[1], operation,
      code, sum(count), min("firstAt"), max("lastAt"),
      (array_agg("lastIp" order by "lastAt" desc) filter (where "lastIp" is not null))[1]
    from jsonb_to_recordset(${JSON.stringify(batch)}::jsonb) as batch (id text, "organizationId" text, hour timestamptz,
      caller jsonb, operation text, code text, count bigint, "firstAt" timestamptz, "lastAt" timestamptz, "lastIp" text)
    left join organizations as organization on organization.id = batch."organizationId"
    group by organization.id, hour, caller ->> 'id', operation, code
    order by organization.id, hour, caller ->> 'id', operation, code
    on conflict (organization_id, hour, caller_id, operation, code) do update set
      caller = excluded.caller,
      count = refused_attempts.count + excluded.count,
      first_at = least(refused_attempts.first_at, excluded.first_at),
      last_at = greatest(refused_attempts.last_at, excluded.last_at),
      last_ip = case when excluded.last_at >= refused_attempts.last_at
        then coalesce(excluded.last_ip, refused_attempts.last_ip) else refused_attempts.last_ip end`;
  await writeTransaction(db).execute((tx) => insert.execute(tx));
}

export interface RefusalFilter {
  callerId?: string | undefined;
  operation?: string | undefined;
  code?: string | undefined;
  /** Inclusive. */
  from?: Date | undefined;
  /** Exclusive. */
  to?: Date | undefined;
}

/** Ordered by first write, newest first, up to `limit + 1`. A null organization is the installation. */
export async function listRefusals(
  db: Db,
  organizationId: OrganizationId | null,
  { callerId, operation, code, from, to }: RefusalFilter,
  page: { limit: number; before: RefusalId | undefined },
): Promise<ListedRefusals[]> {
  let query = db
    .selectFrom('refused_attempts')
    .select([
      'id',
      'organization_id as organizationId',
      'hour',
      'caller',
      'operation',
      'code',
      'count',
      'first_at as firstAt',
      'last_at as lastAt',
      'last_ip as lastIp',
    ])
    .where(sql<boolean>`organization_id ${organizationId === null ? sql`is null` : sql`= ${organizationId}`}`)
    .orderBy('id', 'desc')
    .limit(page.limit + 1);
  if (page.before !== undefined) query = query.where('id', '<', page.before);
  if (callerId !== undefined) query = query.where('caller_id', '=', callerId);
  if (operation !== undefined) query = query.where('operation', '=', operation);
  if (code !== undefined) query = query.where('code', '=', code);
  if (from !== undefined) query = query.where('last_at', '>=', from);
  if (to !== undefined) query = query.where('first_at', '<', to);
  return query.execute();
}

/** How long refused attempts are kept. */
const keptMs = 90 * dayMs;

/** Deletes old rows. @returns how many */
export function pruneRefusals(from: Pick<Transactor, 'db' | 'clock'>, batchSize?: number): Promise<number> {
  return pruneInBatches(from, { keptMs, batchSize, deleteOldest });
}

function deleteOldest(tx: Tx, until: Date, count: number) {
  const oldest = tx.selectFrom('refused_attempts').select('id').where('hour', '<', until).orderBy('hour').limit(count);
  return tx.deleteFrom('refused_attempts').where('id', 'in', oldest).executeTakeFirstOrThrow();
}
