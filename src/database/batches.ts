import type { Actor } from '../domain/actor.ts';
import type { OrganizationId } from '../domain/ids.ts';
import { inBatches } from '../lib/batches.ts';
import { type Tx, writeTransaction } from './client.ts';
import { currentTime } from './credential.ts';
import { type ActorContext, type Transactor, transact, type Work } from './work.ts';

/** Work of a job in many organizations, in short transactions. A null organization is the installation. */
export interface BatchedWork<Id extends OrganizationId | null> {
  transactor: Transactor;
  /** The job's name in history. */
  actor: Actor;
  organizationIds: readonly Id[];
  /** The maximum number of items per transaction. */
  batchSize: number;
  /** After an abort no further transaction starts. */
  signal?: AbortSignal | undefined;
  /** @returns the number of items; fewer than `batchSize` means that nothing more is due */
  step: (work: Work<ActorContext & { organizationId: Id }>, batchSize: number) => Promise<number>;
}

/**
 * Runs the work in each organization, because its events belong to that organization's chain.
 * @returns the number of items
 * @throws AggregateError after all organizations, if some of them failed
 */
export async function workInBatches<Id extends OrganizationId | null>(given: BatchedWork<Id>): Promise<number> {
  const { transactor, actor, organizationIds, batchSize, step, signal } = given;
  return workInEach(organizationIds, (organizationId) => {
    const by = { actor, organizationId, request: null };
    return inBatches(batchSize, (count) => transact(transactor, by, (work) => step(work, count)), signal);
  });
}

/**
 * Works in one organization after the other, also if it fails in some of them.
 * @param work returns the number of items
 * @returns the number of items
 * @throws AggregateError after all organizations, if some of them failed
 */
export async function workInEach<Id extends OrganizationId | null>(
  organizationIds: readonly Id[],
  work: (organizationId: Id) => Promise<number>,
): Promise<number> {
  const failures: unknown[] = [];
  let total = 0;
  for (const organizationId of organizationIds) {
    try {
      total += await work(organizationId);
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw new AggregateError(failures, `The work failed in ${failures.length} organizations.`);
  return total;
}

/** Rows that are deleted after some time, without an event. */
export interface Pruning {
  keptMs: number;
  /** The maximum number of rows per transaction. */
  batchSize?: number | undefined;
  /** @returns the result of the deletion */
  deleteOldest: (tx: Tx, until: Date, count: number) => Promise<{ numDeletedRows: bigint }>;
}

const prunedAtOnce = 1_000;

/** Deletes rows that are too old, each batch in its own transaction. @returns the number of rows */
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
