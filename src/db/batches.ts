import type { Actor } from '../core/actor.ts';
import type { OrganizationId } from '../core/ids.ts';
import { type OrganizationDoer, type Transactor, transact, type Work } from './work.ts';

/** Work that a job does in many organizations, in transactions that hold up nobody for long. */
export interface BatchedWork {
  transactor: Transactor;
  /** As whom history names the job. */
  actor: Actor;
  organizationIds: readonly OrganizationId[];
  /** How much one transaction does at most. */
  batchSize: number;
  /** @returns how much was done: less than `batchSize` where nothing more is due */
  step: (work: Work<OrganizationDoer>, batchSize: number) => Promise<number>;
}

/** Each transaction is in one organization, because it is recorded in that one's chain. @returns how much was done */
export async function workInBatches(given: BatchedWork): Promise<number> {
  const { transactor, actor, organizationIds, batchSize, step } = given;
  let total = 0;
  for (const organizationId of organizationIds) {
    for (let done = batchSize; done === batchSize; total += done) {
      done = await transact(transactor, { actor, organizationId, request: null }, (work) => step(work, batchSize));
    }
  }
  return total;
}
