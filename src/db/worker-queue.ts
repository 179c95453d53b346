import { sql } from 'kysely';
import type { OrganizationId } from '../core/ids.ts';
import type { Tx } from './client.ts';
import { workerSchema } from './worker-schema.ts';

/** The task of graphile-worker's queue that sends what is due to an organization's webhooks. */
export const sendTask = 'send_webhooks';

export interface SendPayload {
  organizationId: OrganizationId;
}

/**
 * Has one of the services look at once, when this transaction is committed, what there is to send. An organization has
 * one row in the queue at most, however much happens before a service comes to it. Like the chain's head it is locked
 * until the commit, so this comes after history is appended.
 */
export async function wakeSender(tx: Tx, organizationId: OrganizationId): Promise<void> {
  await sql`
    select from ${sql.ref(`${workerSchema}.add_job`)}(
      ${sendTask}, json_build_object('organizationId', ${organizationId}::text),
      job_key := ${`${sendTask} ${organizationId}`})`.execute(tx);
}
