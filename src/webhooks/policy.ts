import type { DisabledReason } from '../database/schema.ts';
import { type InputError, Problem, validationProblems } from '../domain/errors.ts';
import { historyActions } from '../domain/events.ts';
import type { PartnerId } from '../domain/ids.ts';
import { dayMs, hourMs, minuteMs, secondMs } from '../lib/durations.ts';
import { type DeliveryFailure, deliveryFailures } from './delivery-failed.ts';
import { announcedTo } from './payload.ts';

/** The rules of webhooks, without a database. */

export const endpointsAllowed = 50;

/** How long the old secret signs along after a rotation. */
export const oldSecretSignsMs = dayMs;

/** How long a sender may be silent before another takes up its deliveries; an attempt takes 15 s at most. */
export const leaseMs = 30_000;

/** Enough that one slow reply does not hold up the next event, and few enough for a small receiver. */
export const sendsAtOncePerEndpoint = 2;

/** What `events` can name. */
export const webhookEvents = ['*', ...announcedTo('organization', historyActions)] as const;

/** @throws Problem `validation_failed` for what a partner is not notified of */
export function requireTellable(events: readonly string[], partnerId: PartnerId | null): void {
  if (partnerId === null) return;
  const announced: readonly string[] = ['*', ...announcedTo('partner', historyActions)];
  const errors = events.flatMap((event, index): InputError[] =>
    announced.includes(event)
      ? []
      : [{ path: `body.events.${index}`, message: `a partner is not notified of ${event}` }],
  );
  if (errors.length > 0) throw validationProblems(errors);
}

/** Each once and in one order, so that the same wish is the same value. */
export function sortEvents(events: readonly string[]): string[] {
  return events.includes('*') ? ['*'] : webhookEvents.filter((event) => events.includes(event));
}

/** A URL as history keeps it: a query may hold a secret of the receiver's. */
export function shownUrl(url: string): string {
  const { origin, pathname, search } = new URL(url);
  return `${origin}${pathname}${search === '' ? '' : '?…'}`;
}

/** What came of an attempt: a reply with any status, or none and why. */
export type Outcome = { durationMs: number } & (
  | { status: number; reason: null; retryAfterSeconds: number | null; reply: string }
  | { status: null; reason: DeliveryFailure | DeliveryFlaw | 'secret_unreadable'; retryAfterSeconds: null; reply: null }
);

/** Why a stored delivery is not sent at all, and never tried again by itself. */
export const deliveryFlaws = {
  not_authentic:
    'The delivery, its event or its webhook is not what was written with the keyring, or the entry is gone.',
  event_missing: 'History has no event in the place that the delivery names, or none that can be read.',
} as const;

export type DeliveryFlaw = keyof typeof deliveryFlaws;

export function isFlaw({ reason }: Outcome): boolean {
  return reason !== null && reason in deliveryFlaws;
}

/** What is waited after each failed attempt before the next one. After the last of them there is none. */
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

/** Receivers that fail together are not called together again. */
const jitter = 0.1;

const longestRetryAfterMs = dayMs;

/** An endpoint of which every attempt has failed for this long is disabled. */
const failingAllowedMs = 5 * dayMs;

const gone = 410;
const asksToWait = [429, 503];

export type Decision = { kind: 'delivered' } | { kind: 'retry'; delayMs: number } | { kind: 'failed' };

/**
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

/** How an attempt can end, in one word. `refused`: by a status that is no success. */
export const attemptOutcomes = [
  'delivered',
  'refused',
  'secret_unreadable',
  ...(Object.keys(deliveryFlaws) as DeliveryFlaw[]),
  ...(Object.keys(deliveryFailures) as DeliveryFailure[]),
] as const;

export type AttemptOutcome = (typeof attemptOutcomes)[number];

export function outcomeWord(outcome: Outcome): AttemptOutcome {
  if (isSuccess(outcome)) return 'delivered';
  return outcome.reason ?? 'refused';
}

/** Whether an endpoint is to be disabled after a failed attempt, and why. */
export function reasonToDisable(outcome: Outcome, failingSince: Date, now: Date): DisabledReason | undefined {
  if (outcome.status === gone) return 'gone';
  return now.getTime() - failingSince.getTime() >= failingAllowedMs ? 'failing' : undefined;
}

/** @throws Problem `conflict`: what is disabled is sent nothing */
export function requireEnabled(endpoint: { id: string; disabled_at: Date | null }): void {
  if (endpoint.disabled_at === null) return;
  throw new Problem('conflict', `Webhook ${endpoint.id} is disabled: enable it first.`);
}
