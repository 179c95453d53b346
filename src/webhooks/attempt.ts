import type { Keyring } from '../crypto/keyring.ts';
import { SealBroken } from '../crypto/seal.ts';
import { writeTransaction } from '../database/client.ts';
import { currentTime } from '../database/credential.ts';
import { type OrganizationContext, type Transactor, transact, type Work } from '../database/work.ts';
import { systemActor } from '../domain/actor.ts';
import type { WebhookId } from '../domain/ids.ts';
import { parseTraceparent, type Tracer, toTraceparent } from '../domain/trace.ts';
import { readEvent } from '../history/views.ts';
import { recordOf, wakeSenderBeforeCommit } from './commands.ts';
import type { WebhookClient } from './connector.ts';
import { DeliveryFailed } from './delivery-failed.ts';
import { isDeliveryAuthentic } from './delivery-mac.ts';
import { openSecrets } from './mint.ts';
import { audienceOf, payloadFor } from './payload.ts';
import {
  type DeliveryFlaw,
  decide,
  isFlaw,
  isSuccess,
  leaseMs,
  type Outcome,
  reasonToDisable,
  sendsAtOncePerEndpoint,
} from './policy.ts';
import {
  countAttempt,
  type DeliveryState,
  failPending,
  insertAttempt,
  type LeasedDelivery,
  lockAttempted,
  markDelivered,
  markLeased,
  updateDeliveryState,
} from './sending-store.ts';
import { signDelivery } from './signature.ts';
import { lockForSending, markFailingSince, markWebhookDisabled, type SendingWebhook } from './store.ts';

/**
 * One delivery attempt: a transaction leases the delivery, the request is sent outside any transaction, and another
 * transaction records the outcome.
 */

export interface Lease {
  webhook: SendingWebhook;
  delivery: LeasedDelivery;
  /** The database's time of the lease. */
  at: Date;
}

const failedAtOnce = 1_000;

const sender = systemActor('webhooks');

/**
 * Leases due deliveries of an endpoint, up to the limits. Fails the pending ones of a disabled or deleted endpoint.
 * @param freeSlotsFor how many more calls to this endpoint the sender has capacity for
 * @returns `more`: call again at once
 */
export async function leaseDue(
  { db, clock }: Pick<Transactor, 'db' | 'clock'>,
  id: WebhookId,
  freeSlotsFor: (webhook: SendingWebhook) => number,
): Promise<{ leases: Lease[]; more: boolean }> {
  return writeTransaction(db).execute(async (tx) => {
    const webhook = await lockForSending(tx, id);
    if (webhook === undefined) return { leases: [], more: false };
    const at = await currentTime(tx, clock);
    if (!webhook.is_live) {
      return { leases: [], more: (await failPending(tx, id, at, failedAtOnce)) === failedAtOnce };
    }
    const slots = freeSlotsFor(webhook);
    if (slots <= 0) return { leases: [], more: false };
    const leasedUntil = new Date(at.getTime() + leaseMs);
    const deliveries = await markLeased(tx, webhook, { now: at, leasedUntil, atOnce: sendsAtOncePerEndpoint, slots });
    return { leases: deliveries.map((delivery) => ({ webhook, delivery, at })), more: false };
  });
}

interface SendDeps {
  keyring: Keyring;
  client: Pick<WebhookClient, 'post'>;
  /** Removes secrets from an endpoint's reply before it is stored. */
  mask: (text: string) => string;
}

/**
 * Sends a leased delivery, signed with the current secrets.
 * @throws what the client throws when it is closed; the outcome is then unknown
 */
export async function send(
  { tracer, ...deps }: SendDeps & { tracer: Tracer },
  lease: Lease,
): Promise<{ outcome: Outcome; error?: unknown }> {
  const span = tracer.start(parseTraceparent(lease.delivery.traceparent), {
    name: 'POST webhook',
    kind: 'client',
    facts: { 'http.request.method': 'POST', 'latchkey.webhook_id': lease.webhook.id },
  });
  const headers = span === undefined ? {} : { traceparent: toTraceparent(span.context) };
  let status: number | null = null;
  try {
    const sent = await post(deps, lease, headers);
    ({ status } = sent.outcome);
    return sent;
  } finally {
    const facts = status === null ? {} : { 'http.response.status_code': status };
    span?.end(facts, { isError: status === null || status >= 400 });
  }
}

async function post(
  { keyring, client, mask }: SendDeps,
  { webhook, delivery, at }: Lease,
  headers: Record<string, string>,
): Promise<{ outcome: Outcome; error?: unknown }> {
  const nothing = { status: null, retryAfterSeconds: null, reply: null } as const;
  try {
    const sent = bodyOf(keyring, webhook, delivery);
    if ('reason' in sent) return { outcome: { ...nothing, reason: sent.reason, durationMs: 0 } };
    const secrets = openSecrets(keyring, webhook, at);
    const timestampSeconds = Math.floor(at.getTime() / 1_000);
    const signed = signDelivery(secrets, { id: delivery.id, timestampSeconds, body: sent.body });
    const { status, retryAfterSeconds, body, durationMs } = await client.post(
      webhook.url,
      { ...signed, ...headers },
      sent.body,
    );
    return { outcome: { status, reason: null, retryAfterSeconds, reply: excerptOf(mask(body)), durationMs } };
  } catch (error) {
    if (error instanceof DeliveryFailed) {
      return { outcome: { ...nothing, reason: error.reason, durationMs: error.durationMs }, error };
    }
    if (error instanceof SealBroken) {
      return { outcome: { ...nothing, reason: 'secret_unreadable', durationMs: 0 }, error };
    }
    throw error;
  }
}

/** The body is built from the authenticated event, so that no other data in the database gets signed. */
function bodyOf(
  keyring: Keyring,
  webhook: SendingWebhook,
  { canonical, ...delivery }: LeasedDelivery,
): { body: string } | { reason: DeliveryFlaw } {
  if (canonical === null) return { reason: 'event_missing' };
  if (!isDeliveryAuthentic(keyring, delivery, { ...delivery, endpointId: webhook.id, canonical })) {
    return { reason: 'not_authentic' };
  }
  const event = readEvent({ canonical });
  return event === undefined
    ? { reason: 'event_missing' }
    : { body: payloadFor(audienceOf(webhook.partner_id), event) };
}

const excerptLength = 1_000;

function excerptOf(body: string): string {
  return body.slice(0, excerptLength).toWellFormed();
}

/** Records an attempt and updates the delivery and its endpoint. */
export async function recordOutcome(transactor: Transactor, lease: Lease, outcome: Outcome): Promise<void> {
  const { webhook, delivery, at } = lease;
  // Fast path for a success: one statement.
  if (isSuccess(outcome)) {
    const attempt = { at, status: outcome.status, duration_ms: outcome.durationMs, reply: outcome.reply };
    if (await markDelivered(transactor, delivery, attempt)) return;
  }
  const by = { actor: sender, organizationId: webhook.organization_id, request: null };
  await transact(transactor, by, async (work) => {
    const endpoint = await lockForSending(work.tx, webhook.id);
    const known = await lockAttempted(work.tx, delivery.id);
    if (endpoint === undefined || known === undefined) return;
    const number = known.attempts + 1;
    const { status, reason, durationMs, reply } = outcome;
    await insertAttempt(work.tx, {
      delivery_id: delivery.id,
      number,
      at,
      status,
      reason,
      reply,
      duration_ms: durationMs,
    });
    const isOurs = known.status === 'pending' && known.leased_until?.getTime() === delivery.leased_until.getTime();
    // A success counts even after the lease ended. A failure counts only for the current lease holder.
    if (isOurs || (isSuccess(outcome) && known.status !== 'delivered')) {
      await updateDeliveryState(work.tx, delivery.id, stateAfterAttempt(outcome, { ...known, number }, work.now));
    } else {
      await countAttempt(work.tx, delivery.id, number);
    }
    await updateEndpointHealth(work, endpoint, outcome);
  });
}

function stateAfterAttempt(
  outcome: Outcome,
  { failures, number: attempts }: { failures: number; number: number },
  now: Date,
): DeliveryState {
  const decision = decide(outcome, failures, Math.random());
  const done = { attempts, leased_until: null };
  switch (decision.kind) {
    case 'delivered':
      return { ...done, status: 'delivered', failures, finished_at: now };
    case 'failed':
      return { ...done, status: 'failed', failures: failures + 1, finished_at: now };
    case 'retry': {
      const due_at = new Date(now.getTime() + decision.delayMs);
      return { ...done, status: 'pending', failures: failures + 1, due_at, finished_at: null };
    }
  }
}

/** The endpoint is locked, so only one sender disables it and records that. */
async function updateEndpointHealth(
  work: Work<OrganizationContext>,
  webhook: SendingWebhook,
  outcome: Outcome,
): Promise<void> {
  const { id, failing_since } = webhook;
  // A flaw of the stored delivery is not the endpoint's failure.
  if (!webhook.is_live || isFlaw(outcome)) return;
  if (isSuccess(outcome)) {
    if (failing_since !== null) await markFailingSince(work.tx, id, null);
    return;
  }
  const failingSince = failing_since ?? work.now;
  if (failing_since === null) await markFailingSince(work.tx, id, failingSince);
  const reason = reasonToDisable(outcome, failingSince, work.now);
  if (reason === undefined) return;
  await markWebhookDisabled(work.tx, id, work.now, reason);
  recordOf(work, webhook, 'webhook.disabled', { reason, failingSince: failingSince.toISOString() });
  wakeSenderBeforeCommit(work);
}
