import { sql } from 'kysely';
import type { WebhookId } from '../core/ids.ts';
import type { Db, Tx } from '../db/client.ts';
import type { SealedSecrets, SecretColumns } from './mint.ts';

const isStale = (primaryId: string) => sql<boolean>`
  (sealed_keyring_id <> ${primaryId} or previous_sealed_keyring_id <> ${primaryId})`;

/** Webhooks of which a secret is not sealed under the primary keyring entry. */
export async function countStaleWebhooks(db: Db, primaryId: string): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select count(*)::int as count from webhook_endpoints where ${isStale(primaryId)}`.execute(db);
  return rows[0]?.count ?? 0;
}

/** The next of them by id, locked against change. One that somebody else has locked is passed by. */
export async function lockStaleWebhooks(
  tx: Tx,
  primaryId: string,
  { after, limit }: { after: string; limit: number },
): Promise<SealedSecrets[]> {
  const { rows } = await sql<SealedSecrets>`
    select id, organization_id, partner_id, url, sealed, sealed_keyring_id, previous_sealed, previous_sealed_keyring_id,
      previous_until
    from webhook_endpoints where ${isStale(primaryId)} and id > ${after}
    order by id limit ${limit} for no key update skip locked`.execute(tx);
  return rows;
}

/** The webhook must be locked. */
export async function replaceSeals(tx: Tx, id: WebhookId, columns: SecretColumns): Promise<void> {
  await tx.updateTable('webhook_endpoints').set(columns).where('id', '=', id).execute();
}
