import { validationProblem } from '../domain/errors.ts';
import { latestMs, secondMs } from '../lib/durations.ts';

/** How long keys may live. Every request that sets a key's expiry follows these rules. */

/** An organization's rules about the lifetime of its keys. */
export interface LifetimeRules {
  max_key_lifetime_seconds: number | null;
  default_key_lifetime_seconds: number | null;
}

export interface ExpiryDecision {
  rules: LifetimeRules;
  now: Date;
  /** The member of the request that a problem names. */
  path: string;
  /** The key as it is; undefined for a new key. */
  present?: { created_at: Date; expires_at: Date | null } | undefined;
}

/**
 * The expiry that a key gets.
 * @param requested undefined if the request has none: a new key then gets the default or maximum lifetime. Null: no expiry
 * @throws Problem `validation_failed` for an expiry in the past or beyond the maximum lifetime
 */
export function expiryFor(requested: Date | null | undefined, decision: ExpiryDecision): Date | null {
  const { rules, now, path, present } = decision;
  if (requested === undefined) {
    if (present !== undefined) return present.expires_at;
    const seconds = rules.default_key_lifetime_seconds ?? rules.max_key_lifetime_seconds;
    return seconds === null ? null : after(now, seconds);
  }
  if (requested !== null && requested <= now) {
    throw validationProblem(path, `must be later than now (${now.toISOString()})`);
  }
  requireWithinLifetime(requested, decision);
  return requested;
}

/**
 * Checks an expiry against the maximum lifetime, which counts from the key's creation. A key that is too old for it may
 * still get an earlier expiry, within the maximum from now.
 * @throws Problem `validation_failed`
 */
export function requireWithinLifetime(requested: Date | null, { rules, now, path, present }: ExpiryDecision): void {
  const most = rules.max_key_lifetime_seconds;
  if (most === null) return;
  if (requested === null) {
    throw validationProblem(path, `must not be null: a key of this organization lives at most ${most} seconds`);
  }
  const latest = after(present?.created_at ?? now, most);
  if (requested <= latest) return;
  const isShortened = present !== undefined && (present.expires_at === null || requested < present.expires_at);
  if (isShortened && requested <= after(now, most)) return;
  throw validationProblem(
    path,
    `must be at most ${(isShortened ? after(now, most) : latest).toISOString()}: a key of this organization lives at most ` +
      `${most} seconds`,
  );
}

function after(start: Date, seconds: number): Date {
  return new Date(Math.min(start.getTime() + seconds * secondMs, latestMs));
}
