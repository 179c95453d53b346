import { entityTagOf } from '../domain/entity-tag.ts';
import { Problem, validationProblem } from '../domain/errors.ts';
import type { Access, Permission } from '../domain/permissions.ts';
import { type RestoreMethod, type RestoreWindows, requireOpenWindow, windowEnd } from '../domain/restore-window.ts';
import { dayMs } from '../lib/durations.ts';

/** Rules of keys and rows that need no database. */

/** A live key is `active`, `suspended` or `expired`; a deleted one may still be restorable. */
export type KeyStatus = 'active' | 'suspended' | 'expired' | 'deleted';

export const keyStatuses = ['active', 'suspended', 'expired', 'deleted'] as const satisfies readonly KeyStatus[];

/**
 * Text without regard to case: Unicode's default mappings, as JavaScript has them, independent of the database's locale.
 * Lower case first, because some capitals have no other upper case: ẞ and ß both become SS.
 */
export function foldCase(text: string): string {
  return text.toLowerCase().toUpperCase();
}

interface KeyState {
  expires_at: Date | null;
  suspended_at: Date | null;
  deleted_at: Date | null;
}

/** The status at `now`. A key has expired from `expires_at` on, inclusive. */
export function statusOf(key: KeyState, now: Date): KeyStatus {
  if (key.deleted_at !== null) return 'deleted';
  if (key.suspended_at !== null) return 'suspended';
  if (key.expires_at !== null && key.expires_at <= now) return 'expired';
  return 'active';
}

/** Until when an admin can restore the key; null for a live key and for a compromised one, which cannot be restored. */
export function restorableUntil(
  key: { deleted_at: Date | null; delete_reason: string | null },
  undoWindowSeconds: number,
): Date | null {
  if (key.deleted_at === null || key.delete_reason === 'compromised') return null;
  return windowEnd(key.deleted_at, undoWindowSeconds);
}

/** How long before its expiry a key is listed as expiring soon. */
const soonMs = 7 * dayMs;

/** The keys that expire soon, earliest first. Expired keys are not included. */
export function expiringSoon<Id>(keys: ReadonlyArray<{ id: Id; expires_at: Date | null }>, now: Date): Id[] {
  return keys
    .flatMap(({ id, expires_at: at }) => (at === null ? [] : [{ id, leftMs: at.getTime() - now.getTime() }]))
    .filter(({ leftMs }) => leftMs > 0 && leftMs <= soonMs)
    .sort((one, other) => one.leftMs - other.leftMs)
    .map(({ id }) => id);
}

/** The number of live keys per row: two, so that a key can be replaced without downtime. */
export const rowCapacity = 2;

interface Occupant {
  id: string;
  slot: 1 | 2;
}

/**
 * The free slot of a row.
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

/** The key that expired first, suspended or not; undefined if none has expired. */
function firstExpired<Occupant extends { expires_at: Date | null }>(
  occupants: readonly Occupant[],
  now: Date,
): Occupant | undefined {
  const atMs = ({ expires_at: at }: Occupant) => at?.getTime() ?? Number.POSITIVE_INFINITY;
  const [first] = [...occupants].sort((one, other) => atMs(one) - atMs(other));
  return first !== undefined && atMs(first) <= now.getTime() ? first : undefined;
}

/**
 * The place of another key in a row. In a full row it is that of the key that expired first, which must be deleted.
 * @throws Problem `row_full`
 */
export function placeIn<Placed extends Occupant & { expires_at: Date | null }>(
  occupants: readonly Placed[],
  now: Date,
): { slot: 1 | 2; replaced: Placed | undefined } {
  const replaced = occupants.length < rowCapacity ? undefined : firstExpired(occupants, now);
  return { slot: freeSlot(occupants.filter((occupant) => occupant !== replaced)), replaced };
}

/**
 * The permission of a new key, which selects its row.
 * @param granted the partner's permissions; null for the organization's default row
 * @throws Problem `validation_failed` if the requested permission does not fit the owner
 */
export function permissionOfNewKey(granted: readonly Access[] | null, requested: Permission | undefined): Permission {
  if (granted === null) {
    if (requested === undefined || requested === 'read_write') return 'read_write';
    throw validationProblem(
      'body.permission',
      'A key of the default row always has read_write. Give a partnerId for a narrower permission.',
    );
  }
  const [first, second] = granted;
  if (requested === undefined) {
    if (first !== undefined && second === undefined) return first;
    throw validationProblem(
      'body.permission',
      'The partner has the permissions read and write. Choose one of them for the key.',
    );
  }
  if (requested !== 'read_write' && granted.includes(requested)) return requested;
  throw validationProblem(
    'body.permission',
    `The partner has the permission ${granted.join(' and ')}, not ${requested}. Only keys of the default row have read_write.`,
  );
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
 * Checks that a deletion can be undone. The owner and the row need their own checks.
 * @returns when the key was deleted
 * @throws Problem `conflict` (the key is live), `not_restorable`, `not_found` (admins cannot see purged keys)
 */
export function requireRestorableKey(
  key: DeletedKey,
  conditions: { method: RestoreMethod; windows: RestoreWindows; now: Date },
): Date {
  if (key.deleted_at === null) throw new Problem('conflict', `Key ${key.id} is not deleted.`);
  if (key.purged_at !== null) {
    if (conditions.method === 'undo') throw new Problem('not_found', 'There is no such key in this organization.');
    throw new Problem('not_restorable', `Key ${key.id} was purged at ${key.purged_at.toISOString()}.`);
  }
  if (key.delete_reason === 'compromised') {
    throw new Problem('not_restorable', `Key ${key.id} was deleted as compromised. Such a deletion cannot be undone.`);
  }
  requireOpenWindow(`Key ${key.id}`, key.deleted_at, conditions);
  return key.deleted_at;
}

/**
 * Checks that the key's owner may have the key.
 * @param partner null for a key of the default row
 * @throws Problem `not_restorable`
 */
export function requireEligibleOwner(
  key: { id: string; permission: Permission },
  partner: { id: string; deleted_at: Date | null; permissions: readonly Access[] } | null,
): void {
  if (partner === null) return;
  if (partner.deleted_at !== null) {
    throw new Problem(
      'not_restorable',
      `Partner ${partner.id} is deleted. Restore the partner: this also restores the keys that were deleted with it.`,
    );
  }
  if (partner.permissions.some((permission) => permission === key.permission)) return;
  throw new Problem(
    'not_restorable',
    `Partner ${partner.id} has the permission ${partner.permissions.join(' and ')}, but key ${key.id} needs ${key.permission}.`,
  );
}

/**
 * Only an active key can be rotated.
 * @throws Problem `already_deleted`, `conflict`
 */
export function requireRotatableKey(key: KeyState & { id: string }, now: Date): void {
  requireLiveKey(key);
  const status = statusOf(key, now);
  if (status === 'active') return;
  throw new Problem('conflict', `Key ${key.id} is ${status}. Only an active key can be rotated.`);
}

/** The key's entity tag. Use of the key does not change it. */
export function keyTag({ last_used_at, ...kept }: KeyState & { id: string; last_used_at?: Date | null }): string {
  return entityTagOf(kept);
}

export const bulkActions = ['suspend', 'resume', 'delete'] as const;

export type BulkAction = (typeof bulkActions)[number];

/** Why a bulk request leaves a key as it is. */
export const skipCodes = ['not_found', 'already_deleted', 'already_suspended', 'not_suspended'] as const;

export type SkipCode = (typeof skipCodes)[number];

/** Why this change does not apply to a key; undefined if it does. A deleted key can still be declared compromised. */
export function whySkipped(
  key: { suspended_at: Date | null; deleted_at: Date | null; delete_reason: string | null },
  change: { action: BulkAction; reason?: string | null },
): SkipCode | undefined {
  if (key.deleted_at !== null) return becomesCompromised(key, change) ? undefined : 'already_deleted';
  if (change.action === 'suspend' && key.suspended_at !== null) return 'already_suspended';
  return change.action === 'resume' && key.suspended_at === null ? 'not_suspended' : undefined;
}

/** A deletion as compromised is final, and also applies to a key that was deleted for another reason. */
export function becomesCompromised(
  key: { delete_reason: string | null },
  change: { action: BulkAction; reason?: string | null },
): boolean {
  return change.action === 'delete' && change.reason === 'compromised' && key.delete_reason !== 'compromised';
}
