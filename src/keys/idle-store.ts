import { sql } from 'kysely';
import { type Db, type Tx, writeTransaction } from '../database/client.ts';
import type { KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';
import type { IdleTimes } from './idle-policy.ts';
import { lastUse } from './store.ts';

/** Queries of the job that suspends keys without use. */

/** The reason with which it suspends them. */
export const idleReason = 'idle';

export async function organizationsThatSuspendIdle(db: Db): Promise<OrganizationId[]> {
  const query = db.selectFrom('organizations').select('id').where('idle_suspend_after_days', 'is not', null);
  return (await query.orderBy('id').execute()).map(({ id }) => id);
}

/**
 * The last use of a key, its creation, or when it was last resumed or restored: whatever was last. In milliseconds, which
 * is what a notice can store.
 */
const idleSince = sql<Date>`date_trunc('milliseconds', greatest(api_keys.created_at, api_keys.resumed_at, ${lastUse}))`;

/** What has to be done about an idle key. Null: nothing yet. */
type Step = 'announce' | 'suspend' | null;

/** A use after the announcement changes `idle_since`, so that the announcement no longer counts. */
const stepAt = ({ announceIdleSince, suspendIdleSince, announcedUntil }: IdleTimes) => sql<Step>`case
  when ${idleSince} > ${announceIdleSince} then null
  when notice.key_id is null then 'announce'
  when ${idleSince} <= ${suspendIdleSince} and notice.announced_at <= ${announcedUntil} then 'suspend' end`;

interface At {
  times: IdleTimes;
  now: Date;
}

/**
 * Live keys that could be used now, with the announcement that counts. Others cannot be idle: a suspended partner's keys
 * wait for the partner. An announcement that came too early for the present rule named another time, so it does not count.
 */
function usableKeys(db: Db, organizationId: OrganizationId, { times, now }: At) {
  const isInTime = sql<boolean>`notice.announced_at - ${idleSince} >= ${now}::timestamptz - ${times.announceIdleSince}::timestamptz`;
  return db
    .selectFrom('api_keys')
    .leftJoin('partners', 'partners.id', 'api_keys.partner_id')
    .leftJoin('idle_notices as notice', (join) =>
      join.onRef('notice.key_id', '=', 'api_keys.id').on(sql<boolean>`notice.idle_since = ${idleSince}`).on(isInTime),
    )
    .where('api_keys.organization_id', '=', organizationId)
    .where('api_keys.deleted_at', 'is', null)
    .where('api_keys.suspended_at', 'is', null)
    .where('partners.suspended_at', 'is', null)
    .where(sql<boolean>`coalesce(api_keys.expires_at > ${now}, true)`);
}

export interface ExaminedKey {
  id: KeyId;
  step: Step;
}

/** A page of usable keys in the order of their ids, idle or not, without a lock. */
export async function examineKeys(
  db: Db,
  organizationId: OrganizationId,
  { times, now, after, limit }: At & { after: KeyId | undefined; limit: number },
): Promise<ExaminedKey[]> {
  return usableKeys(db, organizationId, { times, now })
    .select(['api_keys.id', stepAt(times).as('step')])
    .$if(after !== undefined, (query) => query.where('api_keys.id', '>', after as KeyId))
    .orderBy('api_keys.id')
    .limit(limit)
    .execute();
}

export interface IdleKey {
  id: KeyId;
  partner_id: PartnerId | null;
  idle_since: Date;
  step: Step;
}

/** Locks these keys and examines them again. Skips locked keys, which somebody is changing, until the next run. */
export async function lockIdleKeys(
  tx: Tx,
  organizationId: OrganizationId,
  { ids, times, now }: At & { ids: readonly KeyId[] },
): Promise<IdleKey[]> {
  return usableKeys(tx, organizationId, { times, now })
    .select(['api_keys.id', 'api_keys.partner_id', idleSince.as('idle_since'), stepAt(times).as('step')])
    .where('api_keys.id', '=', sql<KeyId>`any(${ids})`)
    .orderBy('api_keys.id')
    .forNoKeyUpdate('api_keys')
    .skipLocked()
    .execute();
}

export async function markIdleAnnounced(tx: Tx, keys: readonly IdleKey[], announcedAt: Date): Promise<void> {
  await tx
    .insertInto('idle_notices')
    .values(keys.map(({ id, idle_since }) => ({ key_id: id, idle_since, announced_at: announcedAt })))
    .onConflict((conflict) =>
      conflict.column('key_id').doUpdateSet(({ ref }) => ({
        idle_since: ref('excluded.idle_since'),
        announced_at: ref('excluded.announced_at'),
      })),
    )
    .execute();
}

/** How many live keys are suspended because they were not used. */
export async function countSuspendedIdle(db: Db): Promise<number> {
  const { count } = await db
    .selectFrom('api_keys')
    .select(sql<number>`count(*)::int`.as('count'))
    .where('suspended_at', 'is not', null)
    .where('purged_at', 'is', null)
    .where('deleted_at', 'is', null)
    .where('suspended_reason', '=', idleReason)
    .executeTakeFirstOrThrow();
  return count;
}

/**
 * Deletes announcements of keys that are not to be suspended any more, so that they are announced again if that changes.
 * @returns how many, at most `count`
 */
export async function deleteVoidIdleNotices(db: Db, now: Date, count: number): Promise<number> {
  const isVoid = sql<KeyId>`(
    select notice.key_id from idle_notices as notice
    join api_keys on api_keys.id = notice.key_id
    join organizations on organizations.id = api_keys.organization_id
    left join partners on partners.id = api_keys.partner_id
    where organizations.idle_suspend_after_days is null or api_keys.deleted_at is not null
      or api_keys.suspended_at is not null or partners.suspended_at is not null or api_keys.expires_at <= ${now}
    limit ${count})`;
  const { numDeletedRows } = await writeTransaction(db).execute((tx) =>
    tx.deleteFrom('idle_notices').where('key_id', 'in', isVoid).executeTakeFirstOrThrow(),
  );
  return Number(numDeletedRows);
}
