/** The rules for keys and rows, in their simplest form. A service that disagrees is wrong. */

export const hourMs = 3_600_000;
export const dayMs = 24 * hourMs;
export const undoWindowMs = dayMs;
export const retentionMs = 30 * dayMs;

export type RowName = 'default' | 'read' | 'write';
export type AskedPermission = 'read' | 'write';

export interface ModelKey {
  id: string;
  plaintext: string;
  row: RowName;
  expiresAtMs: number | null;
  isSuspended: boolean;
  deleted: { atMs: number; reason: string } | null;
  isPurged: boolean;
}

export interface ModelState {
  /** By how much the clock was moved. */
  nowMs: number;
  keys: ModelKey[];
  partner: { isSuspended: boolean; deletedAtMs: number | null };
  /** Every action that history must contain, in order. */
  actions: string[];
}

/** Undefined if the command is done, otherwise the code of the rejection. */
export type Refusal = string | undefined;

export const isLive = (key: ModelKey) => key.deleted === null;
export const isExpired = ({ nowMs }: ModelState, key: ModelKey) => key.expiresAtMs !== null && key.expiresAtMs <= nowMs;
export const liveIn = ({ keys }: ModelState, row: RowName) => keys.filter((key) => key.row === row && isLive(key));

export function statusOf(state: ModelState, key: ModelKey): string {
  if (key.isSuspended) return 'suspended';
  return isExpired(state, key) ? 'expired' : 'active';
}

export function refusesChange({ isPurged, deleted }: ModelKey): Refusal {
  if (isPurged) return 'not_found';
  return deleted === null ? undefined : 'already_deleted';
}

export function refusesNewKey(state: ModelState, row: RowName): Refusal {
  if (row !== 'default' && state.partner.deletedAtMs !== null) return 'already_deleted';
  return liveIn(state, row).length >= 2 ? 'row_full' : undefined;
}

export function refusesRotation(state: ModelState, key: ModelKey): Refusal {
  const isOfDeletedPartner = key.row !== 'default' && state.partner.deletedAtMs !== null;
  const dead = refusesChange(key) ?? (isOfDeletedPartner ? 'already_deleted' : undefined);
  if (dead !== undefined) return dead;
  if (statusOf(state, key) !== 'active') return 'conflict';
  return refusesNewKey(state, key.row);
}

export function refusesDeletion(key: ModelKey, reason: string): Refusal {
  const becomesCompromised = reason === 'compromised' && key.deleted?.reason !== 'compromised' && !key.isPurged;
  return becomesCompromised ? undefined : refusesChange(key);
}

export function refusesRestore(state: ModelState, key: ModelKey): Refusal {
  if (key.deleted === null) return 'conflict';
  if (key.isPurged) return 'not_found';
  const isPastUndoWindow = state.nowMs - key.deleted.atMs >= undoWindowMs;
  const isOrphan = key.row !== 'default' && state.partner.deletedAtMs !== null;
  if (key.deleted.reason === 'compromised' || isPastUndoWindow || isOrphan) return 'not_restorable';
  return liveIn(state, key.row).length >= 2 ? 'row_full' : undefined;
}

export function verdictOf(state: ModelState, key: ModelKey, asked: AskedPermission): string {
  if (key.isPurged) return 'not_found';
  if (key.deleted !== null) return 'deleted';
  if (key.isSuspended) return 'suspended';
  if (key.row !== 'default' && state.partner.isSuspended) return 'partner_suspended';
  if (isExpired(state, key)) return 'expired';
  return key.row === 'default' || key.row === asked ? 'valid' : 'insufficient_permission';
}

export function deletedWithPartner({ keys, partner }: ModelState): ModelKey[] {
  return keys.filter((key) => key.deleted?.reason === 'partner_deleted' && key.deleted.atMs === partner.deletedAtMs);
}

export function dueForPurge({ keys, nowMs }: ModelState): ModelKey[] {
  return keys.filter((key) => key.deleted !== null && !key.isPurged && nowMs - key.deleted.atMs >= retentionMs);
}
