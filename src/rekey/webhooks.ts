import { sql } from 'kysely';
import type { WebhookId } from '../domain/ids.ts';
import { reseal, type SealedSecrets, type SecretColumns } from '../webhooks/mint.ts';
import { replaceSeals } from '../webhooks/store.ts';
import type { RekeyedKind } from './rekey.ts';
import { countStaleRows } from './stale-rows.ts';

const isStale = (primaryId: string) => sql<boolean>`
  (sealed_keyring_id <> ${primaryId} or previous_sealed_keyring_id <> ${primaryId})`;

/** Seals the secrets of webhooks under the primary entry. */
export const webhooks: RekeyedKind<SealedSecrets, { id: WebhookId } & SecretColumns> = {
  eventMember: 'webhookSecrets',
  countStale: (db, primaryId, upTo) => countStaleRows(db, 'webhook_endpoints', isStale(primaryId), upTo),
  async lockStale(tx, primaryId, { after, upTo, limit }) {
    const { rows } = await sql<SealedSecrets>`
      select id, organization_id, partner_id, url, sealed, sealed_keyring_id, previous_sealed, previous_sealed_keyring_id,
        previous_until
      from webhook_endpoints where ${isStale(primaryId)} and id > ${after} and id <= ${upTo}
      order by id limit ${limit} for no key update skip locked`.execute(tx);
    return rows;
  },
  renew: (keyring, webhook) => ({ id: webhook.id, ...reseal(keyring, webhook) }),
  async store(tx, _primaryId, renewed) {
    for (const { id, ...columns } of renewed) await replaceSeals(tx, id, columns);
  },
};
