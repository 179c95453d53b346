import { sql } from 'kysely';
import type { Tx } from '../database/client.ts';
import type { OnAppended, Work } from '../database/work.ts';
import { workerSchema } from '../database/worker-schema.ts';
import type { ChainedEvent } from '../domain/events.ts';
import { type DeliveryId, newId, type OrganizationId, type WebhookId } from '../domain/ids.ts';
import { toTraceparent } from '../domain/trace.ts';
import { toCanonical } from '../history/chain.ts';
import { chunksOf } from '../lib/batches.ts';
import { deliveryMac } from './delivery-mac.ts';
import { audienceOf, subscribableBy } from './payload.ts';

/** The columns that decide whether an endpoint is notified of an event. */
interface Listener {
  id: WebhookId;
  partner_id: string | null;
  events: string[];
}

interface NewDelivery {
  id: DeliveryId;
  endpointId: WebhookId;
  event: ChainedEvent;
}

/** A bulk request has up to 1,000 events for each webhook; each statement stays far below the time limit of a query. */
const insertedAtOnce = 1_000;

/**
 * Enqueues deliveries for the endpoints that subscribe to these events, in the transaction that appends the events. The
 * lock on the chain's head makes endpoints visible that were created earlier in the chain. A deleted partner is
 * notified of its deletion and of nothing later.
 */
export const enqueueDeliveries: OnAppended = async ({ tx, keyring, by }, events) => {
  const { organizationId, trace } = by;
  if (organizationId === null) return;
  const listeners = await listenersTo(tx, organizationId, events);
  const deliveries = listeners.flatMap((listener) =>
    events
      .filter((event) => isNotified(listener, event))
      .map((event): NewDelivery => ({ id: newId('delivery'), endpointId: listener.id, event })),
  );
  if (deliveries.length === 0) return;
  const traceparent = trace === undefined ? null : toTraceparent(trace);
  for (const some of chunksOf(deliveries, insertedAtOnce)) await insertDeliveries({ tx, keyring }, some, traceparent);
  await wakeSender(tx, organizationId);
};

async function listenersTo(
  tx: Tx,
  organizationId: OrganizationId,
  events: readonly ChainedEvent[],
): Promise<Listener[]> {
  const tested = events.map(testedBy).filter((id) => id !== undefined);
  const leaving = events.filter(({ action }) => action === 'partner.deleted').map(({ partnerId }) => partnerId);
  const { rows } = await sql<Listener>`
    select id, partner_id, events from webhook_endpoints as endpoint
    where organization_id = ${organizationId} and deleted_at is null and disabled_at is null
      and (id = any(${tested}::text[]) or (
        (events && ${events.map(({ action }) => action)}::text[] or events = '{*}')
        and (partner_id is null or partner_id = any(${leaving}::text[]) or exists (
          select from partners where id = endpoint.partner_id and deleted_at is null
        ))
      ))`.execute(tx);
  return rows;
}

function isNotified({ id, partner_id, events }: Listener, event: ChainedEvent): boolean {
  const tested = testedBy(event);
  if (tested !== undefined) return tested === id;
  if (partner_id !== null && partner_id !== event.partnerId) return false;
  const isSubscribed = events.includes('*') || events.includes(event.action);
  return isSubscribed && subscribableBy(audienceOf(partner_id), [event.action]).length > 0;
}

function testedBy({ action, details }: ChainedEvent): unknown {
  return action === 'webhook.tested' ? details['webhookId'] : undefined;
}

/** Deliveries carry the event's time, which comes from the database. */
async function insertDeliveries(
  { tx, keyring }: Pick<Work, 'tx' | 'keyring'>,
  deliveries: readonly NewDelivery[],
  traceparent: string | null,
): Promise<void> {
  const column = <Value>(read: (delivery: NewDelivery) => Value) => deliveries.map(read);
  const macs = deliveries.map(({ id, endpointId, event }) => {
    const { sequence, action } = event;
    return deliveryMac(keyring, { id, endpointId, sequence, action, canonical: toCanonical(event) });
  });
  await sql`
    insert into webhook_deliveries (id, endpoint_id, sequence, action, mac, mac_keyring_id, status, due_at, created_at,
      traceparent)
    select id, endpoint_id, sequence, action, mac, mac_keyring_id, 'pending', at, at, ${traceparent}::text
    from unnest(${column(({ id }) => id)}::text[], ${column(({ endpointId }) => endpointId)}::text[],
      ${column(({ event }) => event.sequence)}::bigint[], ${column(({ event }) => event.action)}::text[],
      ${macs.map(({ mac }) => mac)}::bytea[], ${macs.map(({ mac_keyring_id }) => mac_keyring_id)}::text[],
      ${column(({ event }) => event.at)}::timestamptz[])
      as delivery (id, endpoint_id, sequence, action, mac, mac_keyring_id, at)`.execute(tx);
}

/** The graphile-worker task that sends an organization's due deliveries. */
export const sendTask = 'send_webhooks';

export interface SendPayload {
  organizationId: OrganizationId;
}

/**
 * Schedules the send task when this transaction commits. Call after appending to history: like the chain's head, the
 * organization's single queue row stays locked until the commit.
 */
export async function wakeSender(tx: Tx, organizationId: OrganizationId): Promise<void> {
  await sql`
    select from ${sql.ref(`${workerSchema}.add_job`)}(
      ${sendTask}, json_build_object('organizationId', ${organizationId}::text),
      job_key := ${`${sendTask} ${organizationId}`})`.execute(tx);
}
