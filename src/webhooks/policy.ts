import type { DisabledReason } from '../database/tables/webhook-endpoints.ts';
import { type InputError, Problem, validationProblems } from '../domain/errors.ts';
import { historyActions } from '../domain/events.ts';
import type { PartnerId } from '../domain/ids.ts';
import { dayMs, hourMs, minuteMs, secondMs } from '../lib/durations.ts';
import { type DeliveryFailure, deliveryFailures } from './delivery-failed.ts';
import { subscribableBy } from './payload.ts';

/** Rules of webhooks that need no database. */

export const endpointsAllowed = 50;

/** How long the old secret also signs after a rotation. */
export const oldSecretSignsMs = dayMs;

/** How long a leased delivery is reserved for its sender. An attempt takes 15 s at most. */
export const leaseMs = 30_000;

/** More than one, so that a slow reply does not delay the next event; few, to spare small receivers. */
export const sendsAtOncePerEndpoint = 2;

/** The valid values of `events`. */
export const webhookEvents = ['*', ...subscribableBy('organization', historyActions)] as const;

/** Rejects events that partners are not notified of. @throws Problem `validation_failed` */
export function requireSubscribable(events: readonly string[], partnerId: PartnerId | null): void {
  if (partnerId === null) return;
  const announced: readonly string[] = ['*', ...subscribableBy('partner', historyActions)];
  const errors = events.flatMap((event, index): InputError[] =>
    announced.includes(event)
      ? []
      : [{ path: `body.events.${index}`, message: `partners cannot subscribe to ${event}` }],
  );
  if (errors.length > 0) throw validationProblems(errors);
}

/** Sorts and deduplicates, so that equal subscriptions compare equal. */
export function sortEvents(events: readonly string[]): string[] {
  return events.includes('*') ? ['*'] : webhookEvents.filter((event) => events.includes(event));
}

/** The URL for history, without its query, which may contain a secret of the receiver. */
export function redactedUrl(url: string): string {
  const { origin, pathname, search } = new URL(url);
  return `${origin}${pathname}${search === '' ? '' : '?…'}`;
}

/** The result of an attempt: a reply with any status, or the reason why there was none. */
export type Outcome = { durationMs: number } & (
  | { status: number; reason: null; retryAfterSeconds: number | null; reply: string }
  | { status: null; reason: DeliveryFailure | DeliveryFlaw | 'secret_unreadable'; retryAfterSeconds: null; reply: null }
);

/** Why a stored delivery is not sent. Such a delivery is never retried automatically. */
export const deliveryFlaws = {
  not_authentic:
    'The delivery, its event or its webhook was changed after it was written, or its keyring entry was removed.',
  event_missing: 'The event of the delivery is missing from history or cannot be read.',
} as const;

export type DeliveryFlaw = keyof typeof deliveryFlaws;

export function isFlaw({ reason }: Outcome): boolean {
  return reason !== null && reason in deliveryFlaws;
}

/** The delay after each failed attempt. After the last one there is no further attempt. */
export const retryDelaysMs: readonly number[] = [
  5 * secondMs,
  5 * minuteMs,
  30 * minuteMs,
  2 * hourMs,
  5 * hourMs,
  10 * hourMs,
  14 * hourMs,
  20 * hourMs,
  24 * hourMs,
];

/** Spreads retries, so that receivers that failed together are not called together again. */
const jitter = 0.1;

const longestRetryAfterMs = dayMs;

/** An endpoint whose attempts all fail for this long is disabled. */
const failingAllowedMs = 5 * dayMs;

const gone = 410;
const asksToWait = [429, 503];

export type Decision = { kind: 'delivered' } | { kind: 'retry'; delayMs: number } | { kind: 'failed' };

/**
 * Decides what follows an attempt.
 * @param failures failed attempts of this delivery before this one
 * @param random from 0 to 1
 */
export function decide(outcome: Outcome, failures: number, random: number): Decision {
  if (isSuccess(outcome)) return { kind: 'delivered' };
  const scheduledMs = retryDelaysMs[failures];
  if (scheduledMs === undefined || outcome.status === gone || isFlaw(outcome)) return { kind: 'failed' };
  const askedMs = outcome.status !== null && asksToWait.includes(outcome.status) ? outcome.retryAfterSeconds : null;
  const leastMs = Math.min((askedMs ?? 0) * secondMs, longestRetryAfterMs);
  return { kind: 'retry', delayMs: Math.round(Math.max(scheduledMs, leastMs) * (1 + jitter * random)) };
}

export function isSuccess({ status }: Outcome): boolean {
  return status !== null && status >= 200 && status < 300;
}

/** How an attempt can end. `refused`: the reply's status is no success. */
export const attemptOutcomes = [
  'delivered',
  'refused',
  'secret_unreadable',
  ...(Object.keys(deliveryFlaws) as DeliveryFlaw[]),
  ...(Object.keys(deliveryFailures) as DeliveryFailure[]),
] as const;

export type AttemptOutcome = (typeof attemptOutcomes)[number];

export function outcomeName(outcome: Outcome): AttemptOutcome {
  if (isSuccess(outcome)) return 'delivered';
  return outcome.reason ?? 'refused';
}

/** Why to disable an endpoint after a failed attempt; undefined to keep it enabled. */
export function reasonToDisable(outcome: Outcome, failingSince: Date, now: Date): DisabledReason | undefined {
  if (outcome.status === gone) return 'gone';
  return now.getTime() - failingSince.getTime() >= failingAllowedMs ? 'failing' : undefined;
}

/** Rejects a request for a disabled webhook. @throws Problem `conflict` */
export function requireEnabled(endpoint: { id: string; disabled_at: Date | null }): void {
  if (endpoint.disabled_at === null) return;
  throw new Problem('conflict', `Webhook ${endpoint.id} is disabled. Enable it first.`);
}
