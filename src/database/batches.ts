import type { Actor } from '../domain/actor.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { inBatches } from '../lib/batches.ts';
import { type Tx, writeTransaction } from './client.ts';
import { currentTime } from './credential.ts';
import { type OrganizationContext, type Transactor, transact, type Work } from './work.ts';

/** Work that a job does in many organizations, in transactions that hold up nobody for long. */
export interface BatchedWork {
  transactor: Transactor;
  /** As whom history names the job. */
  actor: Actor;
  organizationIds: readonly OrganizationId[];
  /** How much one transaction does at most. */
  batchSize: number;
  /** Once it is aborted no further transaction is begun. */
  signal?: AbortSignal | undefined;
  /** @returns how much was done: less than `batchSize` where nothing more is due */
  step: (work: Work<OrganizationContext>, batchSize: number) => Promise<number>;
}

/**
 * Each transaction is in one organization, because it is recorded in that one's chain.
 * @returns how much was done
 * @throws AggregateError when all others are done, where some organization's work could not be
 */
export async function workInBatches(given: BatchedWork): Promise<number> {
  const failures: unknown[] = [];
  let total = 0;
  for (const organizationId of given.organizationIds) {
    try {
      total += await workInOrganization(given, organizationId);
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw new AggregateError(failures, `It failed in ${failures.length} organizations.`);
  return total;
}

async function workInOrganization(given: BatchedWork, organizationId: OrganizationId): Promise<number> {
  const { transactor, actor, batchSize, step, signal } = given;
  const by = { actor, organizationId, request: null };
  return inBatches(batchSize, (count) => transact(transactor, by, (work) => step(work, count)), signal);
}

/** Rows that are kept for a time and then go, without a word in history. */
export interface Pruning {
  keptMs: number;
  /** Rows in one transaction at most. */
  batchSize?: number | undefined;
  /** @returns what the database says of it */
  deleteOldest: (tx: Tx, until: Date, count: number) => Promise<{ numDeletedRows: bigint }>;
}

const prunedAtOnce = 1_000;

/** Removes what is too old, in batches that are transactions of their own. @returns how many rows */
export async function pruneInBatches(
  { db, clock }: Pick<Transactor, 'db' | 'clock'>,
  { keptMs, batchSize = prunedAtOnce, deleteOldest }: Pruning,
): Promise<number> {
  const now = await currentTime(db, clock);
  const until = new Date(now.getTime() - keptMs);
  return inBatches(batchSize, async (count) => {
    const { numDeletedRows } = await writeTransaction(db).execute((tx) => deleteOldest(tx, until, count));
    return Number(numDeletedRows);
  });
}
