import path from 'node:path';
import type { Test } from 'tap';
import { connect } from '../../src/database/client.ts';
import { archiveEvents, planArchive } from '../../src/history/archives/archiving.ts';
import { enqueueDeliveries } from '../../src/webhooks/enqueue-deliveries.ts';
import type { TestService } from './app.ts';
import { createTestClock } from './clock.ts';
import { checkpointsIn, dbTamper, scratchFolder } from './histories.ts';

const dayMs = 86_400_000;

/** Archives chains of a service as the owner, a year after their events. */
export function archivist(t: Test, { urls, keyring }: Pick<TestService, 'urls' | 'keyring'>, url = urls.owner) {
  const owner = connect({ url, poolSize: 2 });
  t.teardown(() => owner.close());
  const transactor = { db: owner.db, keyring, clock: createTestClock(365 * dayMs), onAppended: enqueueDeliveries };
  const folder = scratchFolder(t);
  let files = 0;
  return {
    transactor,
    folder,
    /** @param notes checkpoints of the chain */
    async archive(chain: string, notes: string, { before = new Date(Date.now() + dayMs) }: { before?: Date } = {}) {
      files += 1;
      const file = path.join(folder, `archive-${files}.ndjson`);
      const plan = await planArchive({ transactor }, { chain, before, checkpoints: checkpointsIn(notes) });
      if (plan === undefined) throw new Error(`${chain} has nothing to archive`);
      return { file, ...(await archiveEvents({ transactor }, plan, { chain, file })) };
    },
  };
}

/** Moves all events of a chain to the past. The chain stays valid. */
export function dbBackdate(url: string, chain: string, days: number): Promise<unknown> {
  return dbTamper(
    url,
    `do $do$ declare r record; previous bytea := decode(repeat('00', 32), 'hex'); begin
       for r in select * from history where chain = '${chain}' order by sequence loop
         update history set at = r.at - interval '${days} days', previous_hash = previous, canonical = moved.text,
           hash = sha256(previous || convert_to(moved.text, 'UTF8'))
         from (select regexp_replace(r.canonical, '"at":"[^"]+"', '"at":"' ||
           to_char((r.at - interval '${days} days') at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') || '"') as text) as moved
         where chain = r.chain and sequence = r.sequence returning hash into previous;
       end loop;
       update history_heads set hash = previous, at = at - interval '${days} days' where chain = '${chain}';
     end $do$`,
  );
}
