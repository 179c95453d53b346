import type { LeakResponse } from '../database/tables/organizations.ts';
import { windowEnd } from '../domain/restore-window.ts';

/** What became of a report, for the metric. */
export const leakResults = [
  /** The event was recorded, and the organization's `leakResponse` has acted. */
  'recorded',
  /** The same key was reported at the same place on the same day. */
  'repeated',
  /** The key was reported at more than `placesInDay` places on this day. */
  'too_many',
  /** The key was deleted as compromised before, or it can no longer be restored. */
  'ended',
  'access_token',
  /** The keyring lacks the entry with which the text would be checked. */
  'unchecked',
  /** The text is no credential of this installation, or the caller may not know of it. */
  'unknown',
] as const;

export type LeakResult = (typeof leakResults)[number];

/** What a report did to its key. `none`: nothing was left to do. */
export type LeakAction = LeakResponse | 'none';

/** The places of one key that are recorded on one day. */
export const placesInDay = 20;

interface KeyState {
  deleted_at: Date | null;
  delete_reason: string | null;
}

/**
 * Whether a report of this key is recorded and acted upon: it works, or somebody could make it work again. A suspended or
 * expired key can be resumed or get another expiry.
 */
export function isWorthReporting(key: KeyState, retentionSeconds: number, now: Date): boolean {
  if (key.deleted_at === null) return true;
  return key.delete_reason !== 'compromised' && now < windowEnd(key.deleted_at, retentionSeconds);
}
