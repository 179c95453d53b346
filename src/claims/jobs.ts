import { workInBatches } from '../database/batches.ts';
import { currentTime } from '../database/credential.ts';
import type { Transactor } from '../database/work.ts';
import { systemActor } from '../domain/actor.ts';
import { expireClaim } from './end-commands.ts';
import { lockExpiredClaims, organizationsWithExpiredClaims } from './store.ts';

/** Claims per transaction. */
const batchSize = 100;

/** Ends claims whose time is over, deletes their secrets and records it once each. @returns how many */
export async function expireClaims({
  transactor,
  signal,
}: {
  transactor: Transactor;
  signal?: AbortSignal;
}): Promise<number> {
  const now = await currentTime(transactor.db, transactor.clock);
  return workInBatches({
    transactor,
    actor: systemActor('expire_claims'),
    organizationIds: await organizationsWithExpiredClaims(transactor.db, now),
    batchSize,
    signal,
    async step(work, count) {
      const claims = await lockExpiredClaims(work.tx, work.by.organizationId, work.now, count);
      for (const claim of claims) await expireClaim(work, claim);
      return claims.length;
    },
  });
}
