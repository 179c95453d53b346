import { entityTagOf } from '../domain/entity-tag.ts';
import { Problem, validationProblem } from '../domain/errors.ts';
import type { Access, Permission } from '../domain/permissions.ts';
import { type RestoreWay, type RestoreWindows, requireOpenWindow, windowEnd } from '../domain/restore-window.ts';
import { dayMs } from '../lib/durations.ts';

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
  return windowEnd(key.deleted_at, undoWindowSeconds);
}

/** So long before its expiry a key is said to be about to expire. */
const soonMs = 7 * dayMs;

/** Which of the keys are about to expire, the first one first. One that has expired is no longer about to. */
export function expiringSoon<Id>(keys: ReadonlyArray<{ id: Id; expires_at: Date | null }>, now: Date): Id[] {
  return keys
    .flatMap(({ id, expires_at: at }) => (at === null ? [] : [{ id, leftMs: at.getTime() - now.getTime() }]))
    .filter(({ leftMs }) => leftMs > 0 && leftMs <= soonMs)
    .sort((one, other) => one.leftMs - other.leftMs)
    .map(({ id }) => id);
}

/** A row holds this many live keys, so that one can be replaced with no downtime. */
export const rowPlaces = 2;

interface Occupant {
  id: string;
  slot: 1 | 2;
}

/**
 * The place for one more key in a row.
 * @throws Problem `row_full`, naming the keys that fill it
 */
export function freeSlot(occupants: readonly Occupant[]): 1 | 2 {
  for (const slot of [1, 2] as const) {
    if (!occupants.some((occupant) => occupant.slot === slot)) return slot;
  }
  const keyIds = occupants.map((occupant) => occupant.id);
  throw new Problem(
    'row_full',
    `The row already holds two live keys, ${keyIds.join(' and ')}. Delete one of them first.`,
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
    throw validationProblem(
      'body.permission',
      'A key of the default row always carries read_write; name a partner for a narrower one.',
    );
  }
  const [first, second] = granted;
  if (wanted === undefined) {
    if (first !== undefined && second === undefined) return first;
    throw validationProblem(
      'body.permission',
      'The partner was granted read and write; say which row the key is for: read or write.',
    );
  }
  if (wanted !== 'read_write' && granted.includes(wanted)) return wanted;
  throw validationProblem(
    'body.permission',
    `The partner was granted ${granted.join(' and ')}, not ${wanted}. Only the default row carries read_write.`,
  );
}

/** @throws Problem `validation_failed`: a key that is born expired is a mistake */
export function requireFuture(expiresAt: Date | null, now: Date): void {
  if (expiresAt !== null && expiresAt <= now) {
    throw validationProblem('body.expiresAt', `must be later than now, which is ${now.toISOString()}`);
  }
}

/** @throws Problem `already_deleted` */
export function requireLiveKey(key: { id: string; deleted_at: Date | null }): void {
  if (key.deleted_at === null) return;
  throw new Problem('already_deleted', `Key ${key.id} was deleted at ${key.deleted_at.toISOString()}.`);
}

interface DeletedKey {
  id: string;
  deleted_at: Date | null;
  delete_reason: string | null;
  purged_at: Date | null;
}

/**
 * Whether the deletion itself can be taken back; its owner and its row have a say besides.
 * @returns when the key was deleted
 * @throws Problem `conflict` (it is live), `not_restorable`, `not_found` (to an admin a purged key does not exist)
 */
export function requireRestorableKey(
  key: DeletedKey,
  circumstances: { way: RestoreWay; windows: RestoreWindows; now: Date },
): Date {
  if (key.deleted_at === null) throw new Problem('conflict', `Key ${key.id} is not deleted.`);
  if (key.purged_at !== null) {
    if (circumstances.way === 'undo') throw new Problem('not_found', 'There is no such key in this organization.');
    throw new Problem('not_restorable', `Key ${key.id} was purged at ${key.purged_at.toISOString()}.`);
  }
  if (key.delete_reason === 'compromised') {
    throw new Problem('not_restorable', `Key ${key.id} was deleted as compromised, which cannot be undone.`);
  }
  requireOpenWindow(`Key ${key.id}`, key.deleted_at, circumstances);
  return key.deleted_at;
}

/**
 * A key comes back only to an owner that may have it.
 * @param partner null for a key of the default row
 * @throws Problem `not_restorable`
 */
export function requireOwnerTakesKey(
  key: { id: string; permission: Permission },
  partner: { id: string; deleted_at: Date | null; permissions: readonly Access[] } | null,
): void {
  if (partner === null) return;
  if (partner.deleted_at !== null) {
    throw new Problem(
      'not_restorable',
      `Partner ${partner.id} is deleted. Restoring the partner brings back the keys that its deletion took.`,
    );
  }
  if (partner.permissions.some((permission) => permission === key.permission)) return;
  throw new Problem(
    'not_restorable',
    `Partner ${partner.id} was granted ${partner.permissions.join(' and ')}; key ${key.id} carries ${key.permission}.`,
  );
}

/**
 * Only a key that works is replaced by another: nothing dead comes back to life.
 * @throws Problem `already_deleted`, `conflict`
 */
export function requireRotatableKey(key: KeyState & { id: string }, now: Date): void {
  requireLiveKey(key);
  const status = statusOf(key, now);
  if (status === 'active') return;
  throw new Problem('conflict', `Key ${key.id} is ${status}; only an active key is rotated.`);
}

/** The key's version, which its use leaves as it is. */
export function keyTag({ last_used_at, ...kept }: KeyState & { id: string; last_used_at?: Date | null }): string {
  return entityTagOf(kept);
}
