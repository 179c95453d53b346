import { createHash } from 'node:crypto';
import type { OrganizationContext, Work } from '../database/work.ts';
import type { KeyId } from '../domain/ids.ts';
import { record } from '../history/record.ts';
import { deleteKeys, setKeysSuspended } from '../keys/commands.ts';
import { lockKey } from '../keys/store.ts';
import { dayMs, startOfPeriod } from '../lib/durations.ts';
import { lockOrganizationShared } from '../organizations/store.ts';
import { isWorthReporting, type LeakAction, type LeakResult, placesInDay } from './policy.ts';
import { insertMark, marksOfDay } from './store.ts';

/** Where a key was found, as the reporter says. */
export interface LeakPlace {
  source: string | null;
  url: string | null;
}

export interface LeakReport extends LeakPlace {
  note: string | null;
}

/** What became of a report. */
export interface ReportedLeak {
  result: Extract<LeakResult, 'recorded' | 'repeated' | 'too_many' | 'ended'>;
  /** For a report that is not recorded: what the earlier one did. */
  action: LeakAction;
}

/**
 * Records that a key was found at a place, and does what the organization's `leakResponse` says; once per key, place and day.
 * @throws Problem `not_found` if the key was purged meanwhile
 */
export async function reportLeak(
  work: Work<OrganizationContext>,
  keyId: KeyId,
  { source, url, note }: LeakReport,
  retentionSeconds: number,
): Promise<ReportedLeak> {
  const { tx, now, by } = work;
  const { leak_response: action } = await lockOrganizationShared(tx, by.organizationId);
  const key = await lockKey(tx, by.organizationId, keyId);
  if (!isWorthReporting(key, retentionSeconds, now)) return { result: 'ended', action: 'none' };
  const day = new Date(startOfPeriod(now.getTime(), dayMs));
  const place = placeHash({ source, url });
  const marks = await marksOfDay(tx, key.id, day);
  const earlier = marks.find((mark) => mark.place.equals(place));
  if (earlier !== undefined) return { result: 'repeated', action: earlier.action };
  const last = marks[placesInDay - 1];
  if (last !== undefined) return { result: 'too_many', action: last.action };
  await insertMark(tx, { key_id: key.id, day, place, action });
  record(work, {
    action: 'key.leak_reported',
    keyId: key.id,
    partnerId: key.partner_id,
    details: { source, url, note, action },
  });
  // A deleted key too, so that restoring it does not make a leaked key work.
  if (action === 'suspend' && key.suspended_at === null) {
    await setKeysSuspended(work, [key], { isSuspended: true, reason: 'leak_reported' });
  }
  if (action === 'revoke') await deleteKeys(work, [key], 'compromised');
  return { result: 'recorded', action };
}

/** Identifies a place. */
export function placeHash({ source, url }: LeakPlace): Buffer {
  return createHash('sha256')
    .update(JSON.stringify([source, url]))
    .digest();
}
