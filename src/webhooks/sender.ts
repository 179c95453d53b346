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
import { type Claim, claimDue, send, settle } from './attempt.ts';
import type { WebhookClient } from './connector.ts';
import { enqueueDeliveries } from './enqueue-deliveries.ts';
import { type AttemptOutcome, isFlaw, isSuccess, outcomeWord } from './policy.ts';
import { endpointsToLookAt, endpointsWithDue, hasDue, release } from './sending-store.ts';
import type { SendingWebhook } from './store.ts';

/** Sends what is due, for as long as it is open. Several of them, in whatever processes, share the work. */
export interface WebhookSender {
  /** Something may be due to this organization's endpoints. */
  wake(organizationId: OrganizationId): void;
  /** Takes nothing more, and gives back what does not end soon. */
  close(): Promise<void>;
}

interface WebhookSenderOptions extends Omit<Transactor, 'db' | 'onAppended'> {
  /** As the service's role. */
  url: string;
  /** What every token of this installation begins with. */
  tokenPrefix: string;
  /** Closed with the sender. */
  client: WebhookClient;
  /** By default it only passes on the trace of the event. */
  tracer?: Tracer;
  /** How often calls have ended in which way. */
  tally?: Record<AttemptOutcome, number>;
  logger: Pick<FastifyBaseLogger, 'debug' | 'warn' | 'error'>;
}

/**
 * A receiver that hangs costs two sockets here, and nobody else anything. Those that fail have half of the places, so that
 * others still get through where hundreds hang at once, as when the net of a large host is down.
 */
const sendsAtOnce = 1_000;
const failingSendsAtOnce = 500;

const connections = 4;
const queryTimeoutMs = 10_000;

/** Retries, and what a killed sender has left behind, are found by polling. */
const lookEveryMs = 1_000;

const mayEndWithinMs = 2_000;

/**
 * Starts at once and never fails: what could not be read or written because the database was away is due again later. A
 * sender that is killed leaves deliveries under a lease; when it ends, another takes them up under the same id.
 */
export function startWebhookSender(options: WebhookSenderOptions): WebhookSender {
  const { keyring, client, logger, tracer = passingTracer } = options;
  const { mask } = createSecretText(options.tokenPrefix);
  const database = connect({
    url: options.url,
    poolSize: connections,
    timeoutMs: queryTimeoutMs,
    onLost: (error) => logger.warn({ err: error }, 'A connection of the webhook sender was lost.'),
  });
  const { db } = database;
  const transactor: Transactor = { ...options, db, onAppended: enqueueDeliveries };
  const closing = new AbortController();
  const looking = new Set<Promise<void>>();
  const sending = new Set<Promise<void>>();
  const sendingToFailing = new Set<Promise<void>>();

  const lookAtOrganization = singleFlight(async (id: OrganizationId) => {
    for (const webhookId of await endpointsToLookAt(transactor, id)) look(lookAtEndpoint, webhookId);
  });

  const lookAtEndpoint = singleFlight(async (id: WebhookId) => {
    for (let more = true; more; ) {
      const claimed = await claimDue(transactor, id, placesFor);
      for (const claim of claimed.claims) {
        const delivered = deliver(claim);
        track(sending, delivered);
        if (isFailing(claim.webhook)) track(sendingToFailing, delivered);
      }
      more = claimed.more;
    }
  });

  /** What the transactions of a moment take, one for each connection at most, may go beyond it. */
  function placesFor(endpoint: Pick<SendingWebhook, 'failing_since'>): number {
    const places = sendsAtOnce - sending.size;
    return isFailing(endpoint) ? Math.min(places, failingSendsAtOnce - sendingToFailing.size) : places;
  }

  /** What is due since the look in progress is found by the next one. */
  function look<Id>(at: SingleFlight<Id, void>, id: Id): void {
    if (closing.signal.aborted) return;
    const looked = at.next(id).catch((error: unknown) => {
      logger.warn({ err: error, id }, 'What is due to webhooks could not be taken up; this is tried again.');
    });
    track(looking, looked);
  }

  async function deliver(claim: Claim): Promise<void> {
    const facts = { webhookId: claim.webhook.id, deliveryId: claim.delivery.id };
    try {
      const { outcome, error } = await send({ keyring, client, tracer, mask }, claim);
      const { status, reason, durationMs } = outcome;
      if (options.tally !== undefined) options.tally[outcomeWord(outcome)] += 1;
      if (isFlaw(outcome)) logger.error({ ...facts, reason }, 'A delivery is not what was written, so it is not sent.');
      else if (reason === 'secret_unreadable')
        logger.warn({ err: error, ...facts }, "A webhook's secret does not open.");
      else logger.debug({ err: error, ...facts, status, reason, durationMs }, 'A webhook was called.');
      await settle(transactor, claim, outcome);
      // The places of those that fail go round: who has had one waits for its turn.
      if (!isSuccess(outcome)) return;
    } catch (error) {
      if (closing.signal.aborted) await giveBack(claim);
      else logger.warn({ err: error, ...facts }, 'What came of a delivery could not be kept; it is sent again.');
    }
    if (closing.signal.aborted) return;
    if (await hasDue(transactor, claim.webhook.id).catch(() => false)) {
      look(lookAtEndpoint, claim.webhook.id);
    }
  }

  async function giveBack({ delivery }: Claim): Promise<void> {
    try {
      await release(transactor, delivery);
    } catch (error) {
      logger.warn({ err: error, deliveryId: delivery.id }, 'A delivery could not be given back; its lease will end.');
    }
  }

  const warnOfOutage = limitedWarnings(logger);
  const watching = startPeriodicTask({
    everyMs: lookEveryMs,
    immediately: true,
    async run() {
      for (const endpoint of await endpointsWithDue(transactor)) {
        if (placesFor(endpoint) > 0) look(lookAtEndpoint, endpoint.id);
      }
    },
    onError: (err) => warnOfOutage({ err }, 'What is due to webhooks could not be read; this is tried again.'),
  });

  return {
    wake: (organizationId) => look(lookAtOrganization, organizationId),
    async close() {
      closing.abort();
      const watched = watching.close();
      await Promise.race([allEnded(looking).then(() => allEnded(sending)), pause(mayEndWithinMs)]);
      await client.close();
      await Promise.all([allEnded(looking), watched]);
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

/** Also those that are begun meanwhile. */
async function allEnded(works: ReadonlySet<Promise<void>>): Promise<void> {
  while (works.size > 0) await Promise.allSettled(works);
}
