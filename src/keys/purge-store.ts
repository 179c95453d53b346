import { sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { DeleteReason } from '../database/tables/api-keys.ts';
import type { KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';

/** Queries of the job that purges deleted keys. */

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
