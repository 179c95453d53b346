import { entityTagOf } from '../core/entity-tag.ts';
import { type InputError, Problem } from '../core/errors.ts';
import type { Access, Permission } from '../core/permissions.ts';

/** The rules of keys and rows, without a database. */

/** A live key is `active`, `suspended` or `expired`; a deleted one may still be restorable. */
export type KeyStatus = 'active' | 'suspended' | 'expired' | 'deleted';

export const keyStatuses = ['active', 'suspended', 'expired', 'deleted'] as const satisfies readonly KeyStatus[];

interface KeyState {
  expires_at: Date | null;
  suspended_at: Date | null;
  deleted_at: Date | null;
}

/** At the expiry's very moment the key has expired. */
export function statusOf(key: KeyState, now: Date): KeyStatus {
  if (key.deleted_at !== null) return 'deleted';
  if (key.suspended_at !== null) return 'suspended';
  if (key.expires_at !== null && key.expires_at <= now) return 'expired';
  return 'active';
}

/** Until when an admin can undo the deletion; null for a live key, and for a compromised one, which stays deleted. */
export function restorableUntil(
  key: { deleted_at: Date | null; delete_reason: string | null },
  undoWindowSeconds: number,
): Date | null {
  if (key.deleted_at === null || key.delete_reason === 'compromised') return null;
  return new Date(key.deleted_at.getTime() + undoWindowSeconds * 1000);
}

/** A row holds this many live keys, so that one can be replaced with no downtime. */
export const rowPlaces = 2;

interface Occupant {
  id: string;
  slot: 1 | 2;
}

/**
 * The place for a new key in a row.
 * @throws Problem `row_full`, naming the keys that fill it
 */
export function freeSlot(occupants: readonly Occupant[]): 1 | 2 {
  for (const slot of [1, 2] as const) {
    if (!occupants.some((occupant) => occupant.slot === slot)) return slot;
  }
  const keyIds = occupants.map((occupant) => occupant.id);
  throw new Problem(
    'row_full',
    `The row already holds two live keys, ${keyIds.join(' and ')}. Delete one of them, then create the new one.`,
    { members: { keyIds } },
  );
}

/**
 * The permission of a new key: the row into which it goes.
 * @param granted what the partner was granted; null for the organization's default row
 * @throws Problem `validation_failed` where the wish does not fit the owner
 */
export function permissionFor(granted: readonly Access[] | null, wanted: Permission | undefined): Permission {
  if (granted === null) {
    if (wanted === undefined || wanted === 'read_write') return 'read_write';
    throw refusedPermission('A key of the default row always carries read_write; name a partner for a narrower one.');
  }
  const [first, second] = granted;
  if (wanted === undefined) {
    if (first !== undefined && second === undefined) return first;
    throw refusedPermission('The partner was granted read and write; say which row the key is for: read or write.');
  }
  if (wanted !== 'read_write' && granted.includes(wanted)) return wanted;
  throw refusedPermission(
    `The partner was granted ${granted.join(' and ')}, not ${wanted}. Only the default row carries read_write.`,
  );
}

function refusedPermission(message: string): Problem {
  return invalid({ path: 'body.permission', message });
}

/** @throws Problem `validation_failed`: a key that is born expired is a mistake */
export function requireFuture(expiresAt: Date | null, now: Date): void {
  if (expiresAt !== null && expiresAt <= now) {
    throw invalid({ path: 'body.expiresAt', message: `must be later than now, which is ${now.toISOString()}` });
  }
}

function invalid(error: InputError): Problem {
  return new Problem('validation_failed', `${error.path}: ${error.message}`, { errors: [error] });
}

/** @throws Problem `already_deleted` */
export function requireLiveKey(key: { id: string; deleted_at: Date | null }): void {
  if (key.deleted_at === null) return;
  throw new Problem('already_deleted', `Key ${key.id} was deleted at ${key.deleted_at.toISOString()}.`);
}

/** The key's version, which its use leaves as it is. */
export function keyTag({ last_used_at, ...kept }: KeyState & { id: string; last_used_at: Date | null }): string {
  return entityTagOf(kept);
}
