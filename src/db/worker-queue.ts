import { sql } from 'kysely';
import type { WebhookId } from '../core/ids.ts';
import type { Tx } from './client.ts';
import { workerSchema } from './worker-schema.ts';

/** The task of graphile-worker's queue that sends what is due to an endpoint. */
export const sendTask = 'send_webhooks';

export interface SendPayload {
  webhookId: WebhookId;
}

/**
 * Has one of the services look at once, when this transaction is committed, whether there is something to send to these
 * endpoints. An endpoint has one row in the queue at most, however much happens before a service comes to it. Like the
 * chain's head it is locked until the commit, so this comes after history is appended.
 */
export async function wakeSenders(tx: Tx, webhookIds: readonly WebhookId[]): Promise<void> {
  await sql`
    select ${sql.ref(`${workerSchema}.add_job`)}(
      ${sendTask}, json_build_object('webhookId', id), job_key := ${sendTask} || ' ' || id)
    from unnest(${webhookIds}::text[]) as endpoint (id) order by id`.execute(tx);
}
