import { sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { DeleteReason } from '../database/tables/api-keys.ts';
import type { KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';

/** Queries of the background jobs for keys. */

export interface KeyToPurge {
  id: KeyId;
  partner_id: PartnerId | null;
  deleted_at: Date;
  delete_reason: DeleteReason;
}

export async function organizationsWithPurges(db: Db, deletedUntil: Date): Promise<OrganizationId[]> {
  const rows = await db
    .selectFrom('api_keys')
    .select('organization_id')
    .distinct()
    .where('deleted_at', '<=', deletedUntil)
    .where('purged_at', 'is', null)
    .execute();
  return rows.map((row) => row.organization_id);
}

/** Skips locked keys until the next run, because a key may be in the middle of a restore. */
export async function lockKeysToPurge(
  tx: Tx,
  organizationId: OrganizationId,
  deletedUntil: Date,
  count: number,
): Promise<KeyToPurge[]> {
  return tx
    .selectFrom('api_keys')
    .select(['id', 'partner_id', 'deleted_at', 'delete_reason'])
    .where('organization_id', '=', organizationId)
    .where('deleted_at', '<=', deletedUntil)
    .where('purged_at', 'is', null)
    .orderBy('id')
    .limit(count)
    .forNoKeyUpdate()
    .skipLocked()
    .$narrowType<{ deleted_at: Date; delete_reason: DeleteReason }>()
    .execute();
}

export async function markKeysPurged(tx: Tx, ids: readonly KeyId[], purgedAt: Date): Promise<void> {
  await tx
    .updateTable('api_keys')
    .set({
      purged_at: purgedAt,
      tag: null,
      tag_keyring_id: null,
      argon2id_hash: null,
      mac: null,
      mac_keyring_id: null,
      sealed: null,
      sealed_keyring_id: null,
      digest_sealed: null,
      digest_keyring_id: null,
    })
    .where('id', '=', sql<KeyId>`any(${ids})`)
    .execute();
}

export interface KeyToAnnounce {
  id: KeyId;
  partner_id: PartnerId | null;
  expires_at: Date;
  days_ahead: 7 | 1;
}

/** The due notice. Measured in hours, because a day does not always have 24. */
const dueNotice = (now: Date) =>
  sql<7 | 1>`case when api_keys.expires_at <= ${now}::timestamptz + interval '24 hours' then 1 else 7 end`;

/** Live keys that expire within seven days and have no notice yet, or only an earlier one. */
const isAnnounceable = (now: Date) => sql<boolean>`
  deleted_at is null and expires_at > ${now} and expires_at <= ${now}::timestamptz + interval '168 hours'
  and not exists (
    select from expiry_notices as notice
    where notice.key_id = api_keys.id and notice.expires_at = api_keys.expires_at
      and notice.days_ahead <= ${dueNotice(now)}
  )`;

export async function organizationsWithExpiries(db: Db, now: Date): Promise<OrganizationId[]> {
  const query = db.selectFrom('api_keys').select('organization_id').distinct();
  return (await query.where(isAnnounceable(now)).execute()).map((row) => row.organization_id);
}

export async function lockKeysToAnnounce(
  tx: Tx,
  organizationId: OrganizationId,
  now: Date,
  count: number,
): Promise<KeyToAnnounce[]> {
  return tx
    .selectFrom('api_keys')
    .select(['id', 'partner_id', 'expires_at', dueNotice(now).as('days_ahead')])
    .where('organization_id', '=', organizationId)
    .where(isAnnounceable(now))
    .orderBy('id')
    .limit(count)
    .forNoKeyUpdate()
    .skipLocked()
    .$narrowType<{ expires_at: Date }>()
    .execute();
}

/** @returns the keys that no other run has announced meanwhile */
export async function insertExpiryNotices(tx: Tx, keys: readonly KeyToAnnounce[]): Promise<KeyToAnnounce[]> {
  if (keys.length === 0) return [];
  const claimed = await tx
    .insertInto('expiry_notices')
    .values(keys.map(({ id, expires_at, days_ahead }) => ({ key_id: id, expires_at, days_ahead })))
    .onConflict((conflict) => conflict.doNothing())
    .returning('key_id')
    .execute();
  const ids = new Set(claimed.map((row) => row.key_id));
  return keys.filter((key) => ids.has(key.id));
}

export async function deleteExpiryNotices(db: Db, expiredBefore: Date): Promise<number> {
  const { numDeletedRows } = await db
    .deleteFrom('expiry_notices')
    .where('expires_at', '<', expiredBefore)
    .executeTakeFirstOrThrow();
  return Number(numDeletedRows);
}
