import { sql } from 'kysely';
import type { WebhookId } from '../domain/ids.ts';
import { reseal, type SealedSecrets, type SecretColumns } from '../webhooks/mint.ts';
import { replaceSeals } from '../webhooks/store.ts';
import type { RekeyedKind } from './rekey.ts';

/** Seals the secrets of webhooks under the primary entry. */
export const webhooks: RekeyedKind<SealedSecrets, { id: WebhookId } & SecretColumns> = {
  eventMember: 'webhookSecrets',
  table: 'webhook_endpoints',
  isStale: (primaryId) => sql`sealed_keyring_id <> ${primaryId} or previous_sealed_keyring_id <> ${primaryId}`,
  renew: (keyring, webhook) => ({ id: webhook.id, ...reseal(keyring, webhook) }),
  async store(tx, renewed) {
    for (const { id, ...columns } of renewed) await replaceSeals(tx, id, columns);
  },
};
