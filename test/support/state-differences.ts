import { purgeDeletedKeys } from '../../src/keys/purge-job.ts';
import { enqueueDeliveries } from '../../src/webhooks/enqueue-deliveries.ts';
import type { TestService } from './app.ts';

/** Purges keys that were deleted so long ago. */
export function purge({ client, keyring, clock }: TestService, retentionSeconds = 2_592_000) {
  return purgeDeletedKeys({
    transactor: { db: client.db, keyring, clock, onAppended: enqueueDeliveries },
    retentionSeconds,
  });
}

/** A member whose row and events differ. */
export interface Difference {
  id: string;
  member: string;
  history: unknown;
  table: unknown;
}

/** @param named headers that name an organization */
export async function differencesIn({ admin }: Pick<TestService, 'admin'>, named: Record<string, string> = {}) {
  const { body } = await admin.get('/v1/history/verify', named);
  if (body.valid !== (body.stateDifferences.length === 0)) throw new Error(JSON.stringify(body));
  return body.stateDifferences as Difference[];
}
