import type { FastifyBaseLogger } from 'fastify';
import { createSecretText } from '../crypto/secret-text.ts';
import { connect } from '../database/client.ts';
import type { Transactor } from '../database/work.ts';
import type { OrganizationId, WebhookId } from '../domain/ids.ts';
import { passingTracer, type Tracer } from '../domain/trace.ts';
import { pause } from '../lib/backoff.ts';
import { limitedWarnings } from '../lib/limited-warnings.ts';
import { startPeriodicTask } from '../lib/periodic-task.ts';
import { type SingleFlight, singleFlight } from '../lib/single-flight.ts';
import { type Lease, leaseDue, recordOutcome, send } from './attempt.ts';
import type { WebhookClient } from './connector.ts';
import { enqueueDeliveries } from './enqueue-deliveries.ts';
import { type AttemptOutcome, isFlaw, isSuccess, outcomeName } from './policy.ts';
import { endpointsToCheck, endpointsWithDue, hasDue, release } from './sending-store.ts';
import type { SendingWebhook } from './store.ts';

/** Sends due deliveries while it is open. Several senders, also in different processes, share the work. */
export interface WebhookSender {
  /** Checks this organization's endpoints for due deliveries. */
  wake(organizationId: OrganizationId): void;
  /** Leases no more deliveries, and releases those that do not end soon. */
  close(): Promise<void>;
}

interface WebhookSenderOptions extends Omit<Transactor, 'db' | 'onAppended'> {
  /** The database URL of the service's role. */
  url: string;
  /** The prefix of every token of this installation. */
  tokenPrefix: string;
  /** The sender closes this client when it closes. */
  client: WebhookClient;
  /** Default: passes on the trace of the event without spans of its own. */
  tracer?: Tracer;
  /** Counts calls by outcome. */
  tally?: Record<AttemptOutcome, number>;
  logger: Pick<FastifyBaseLogger, 'debug' | 'warn' | 'error'>;
}

/**
 * A hanging receiver occupies two slots. Failing receivers share half of the slots, so that deliveries to healthy ones
 * continue while hundreds of others hang.
 */
const sendsAtOnce = 1_000;
const failingSendsAtOnce = 500;

const connections = 4;
const queryTimeoutMs = 10_000;

/** Polling finds retries and deliveries of senders that were killed. */
const pollEveryMs = 1_000;

const closeGraceMs = 2_000;

/**
 * Starts at once and never fails: after a database outage, deliveries are due again later. Deliveries of a killed
 * sender are taken over when their lease ends.
 */
export function startWebhookSender(options: WebhookSenderOptions): WebhookSender {
  const { keyring, client, logger, tracer = passingTracer } = options;
  const { mask } = createSecretText(options.tokenPrefix);
  const database = connect({
    url: options.url,
    poolSize: connections,
    timeoutMs: queryTimeoutMs,
    onLost: (error) => logger.warn({ err: error }, 'The webhook sender lost a database connection. It will reconnect.'),
  });
  const { db } = database;
  const transactor: Transactor = { ...options, db, onAppended: enqueueDeliveries };
  const closing = new AbortController();
  const checking = new Set<Promise<void>>();
  const sending = new Set<Promise<void>>();
  const sendingToFailing = new Set<Promise<void>>();

  const checkOrganization = singleFlight(async (id: OrganizationId) => {
    for (const webhookId of await endpointsToCheck(transactor, id)) check(checkEndpoint, webhookId);
  });

  const checkEndpoint = singleFlight(async (id: WebhookId) => {
    for (let more = true; more; ) {
      const { leases, more: hasMore } = await leaseDue(transactor, id, freeSlotsFor);
      for (const lease of leases) {
        const delivered = deliver(lease);
        track(sending, delivered);
        if (isFailing(lease.webhook)) track(sendingToFailing, delivered);
      }
      more = hasMore;
    }
  });

  /** May be exceeded slightly: concurrent transactions do not see each other's leases. */
  function freeSlotsFor(endpoint: Pick<SendingWebhook, 'failing_since'>): number {
    const slots = sendsAtOnce - sending.size;
    return isFailing(endpoint) ? Math.min(slots, failingSendsAtOnce - sendingToFailing.size) : slots;
  }

  /** A check that is requested during a running one starts another one after it. */
  function check<Id>(at: SingleFlight<Id, void>, id: Id): void {
    if (closing.signal.aborted) return;
    const checked = at.next(id).catch((error: unknown) => {
      logger.warn({ err: error, id }, 'Due webhook deliveries could not be leased. Latchkey will retry.');
    });
    track(checking, checked);
  }

  async function deliver(lease: Lease): Promise<void> {
    const facts = { webhookId: lease.webhook.id, deliveryId: lease.delivery.id };
    try {
      const { outcome, error } = await send({ keyring, client, tracer, mask }, lease);
      const { status, reason, durationMs } = outcome;
      if (options.tally !== undefined) options.tally[outcomeName(outcome)] += 1;
      if (isFlaw(outcome))
        logger.error({ ...facts, reason }, 'A webhook delivery is not authentic or lost its event, so it is not sent.');
      else if (reason === 'secret_unreadable')
        logger.warn({ err: error, ...facts }, "A webhook's secret cannot be decrypted. Rotate the secret.");
      else logger.debug({ err: error, ...facts, status, reason, durationMs }, 'Latchkey called a webhook.');
      await recordOutcome(transactor, lease, outcome);
      // Failing endpoints take turns for slots, so a failed attempt does not lease the next delivery at once.
      if (!isSuccess(outcome)) return;
    } catch (error) {
      if (closing.signal.aborted) await releaseLease(lease);
      else
        logger.warn(
          { err: error, ...facts },
          'The outcome of a webhook delivery could not be stored. Latchkey will send the delivery again.',
        );
    }
    if (closing.signal.aborted) return;
    if (await hasDue(transactor, lease.webhook.id).catch(() => false)) {
      check(checkEndpoint, lease.webhook.id);
    }
  }

  async function releaseLease({ delivery }: Lease): Promise<void> {
    try {
      await release(transactor, delivery);
    } catch (error) {
      logger.warn(
        { err: error, deliveryId: delivery.id },
        'A webhook delivery could not be released. Another sender takes it when its lease ends.',
      );
    }
  }

  const warnOfOutage = limitedWarnings(logger);
  const polling = startPeriodicTask({
    everyMs: pollEveryMs,
    immediately: true,
    async run() {
      for (const endpoint of await endpointsWithDue(transactor)) {
        if (freeSlotsFor(endpoint) > 0) check(checkEndpoint, endpoint.id);
      }
    },
    onError: (err) => warnOfOutage({ err }, 'Due webhook deliveries could not be read. Latchkey will retry.'),
  });

  return {
    wake: (organizationId) => check(checkOrganization, organizationId),
    async close() {
      closing.abort();
      const polled = polling.close();
      await Promise.race([allEnded(checking).then(() => allEnded(sending)), pause(closeGraceMs)]);
      await client.close();
      await Promise.all([allEnded(checking), polled]);
      await allEnded(sending);
      await database.close();
    },
  };
}

function isFailing({ failing_since }: Pick<SendingWebhook, 'failing_since'>): boolean {
  return failing_since !== null;
}

function track(works: Set<Promise<void>>, work: Promise<void>): void {
  const tracked = work.finally(() => works.delete(tracked));
  works.add(tracked);
}

/** Includes work that starts meanwhile. */
async function allEnded(works: ReadonlySet<Promise<void>>): Promise<void> {
  while (works.size > 0) await Promise.allSettled(works);
}
