import type { FastifyBaseLogger } from 'fastify';
import { sql } from 'kysely';
import type { Db } from '../database/client.ts';
import { currentTime } from '../database/credential.ts';
import type { Transactor } from '../database/work.ts';
import { installationChain } from './chain.ts';
import { compareStates } from './state-differences.ts';
import { type RecordKind, recordKinds } from './state-replay.ts';
import { listOrganizationIds } from './state-rows.ts';
import { listChains } from './store.ts';

/** Differences logged per run; further ones are only counted. */
const loggedAtMost = 1_000;

interface StateAuditDeps {
  transactor: Pick<Transactor, 'db' | 'clock' | 'keyring'>;
  logger: Pick<FastifyBaseLogger, 'error'>;
  signal: AbortSignal;
}

/**
 * Compares every record of the installation with its events, logs each difference, and stores the counts for the
 * metrics.
 * @returns the number of differences
 */
export async function auditStates({ transactor, logger, signal }: StateAuditDeps): Promise<number> {
  const { db, keyring } = transactor;
  const counts = Object.fromEntries(recordKinds.map((kind) => [kind, 0])) as Record<RecordKind, number>;
  let total = 0;
  for (const chain of await listAuditedChains(db)) {
    for await (const differences of compareStates(db, chain, keyring)) {
      signal.throwIfAborted();
      for (const { kind, id, member } of differences) {
        counts[kind] += 1;
        total += 1;
        if (total > loggedAtMost) continue;
        logger.error(
          { chain, kind, id, member },
          'A record in the database differs from its history. Run latchkey audit verify.',
        );
      }
    }
  }
  await replaceCounts(db, counts, await currentTime(db, transactor.clock));
  return total;
}

/** Every chain that has events, records or archives. */
export async function listAuditedChains(db: Db): Promise<string[]> {
  const archives = await db.selectFrom('history_archives').select('chain').distinct().execute();
  const archived = archives.map(({ chain }) => chain);
  const chains = [installationChain, ...(await listChains(db)), ...(await listOrganizationIds(db)), ...archived];
  return [...new Set(chains)].sort();
}

async function replaceCounts(db: Db, counts: Record<RecordKind, number>, at: Date): Promise<void> {
  await db
    .insertInto('state_difference_counts')
    .values(Object.entries(counts).map(([kind, count]) => ({ kind, count, at })))
    .onConflict((conflict) => conflict.column('kind').doUpdateSet({ count: sql`excluded.count`, at: sql`excluded.at` }))
    .execute();
}

/** The counts of the last complete run, by kind; empty before the first run. */
export async function readDifferenceCounts(db: Db): Promise<Array<{ kind: string; count: number; at: Date }>> {
  return db.selectFrom('state_difference_counts').select(['kind', 'count', 'at']).orderBy('kind').execute();
}
