/** What Latchkey promises of keys and rows, as simply as it can be said: a service that disagrees with it is wrong. */

export const hourMs = 3_600_000;
export const dayMs = 24 * hourMs;
export const undoWindowMs = dayMs;
export const retentionMs = 30 * dayMs;

export type RowName = 'default' | 'read' | 'write';
export type Asked = 'read' | 'write';

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
  /** How far the clock has been moved. */
  nowMs: number;
  keys: ModelKey[];
  partner: { isSuspended: boolean; deletedAtMs: number | null };
  /** Every action that history must contain, in order. */
  actions: string[];
}

/** Undefined: it is done. Else the code of the refusal. */
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
  const isUnder = key.row !== 'default' && state.partner.deletedAtMs !== null;
  const dead = refusesChange(key) ?? (isUnder ? 'already_deleted' : undefined);
  if (dead !== undefined) return dead;
  if (statusOf(state, key) !== 'active') return 'conflict';
  return refusesNewKey(state, key.row);
}

export function refusesDeletion(key: ModelKey, reason: string): Refusal {
  const worsens = reason === 'compromised' && key.deleted?.reason !== 'compromised' && !key.isPurged;
  return worsens ? undefined : refusesChange(key);
}

export function refusesRestore(state: ModelState, key: ModelKey): Refusal {
  if (key.deleted === null) return 'conflict';
  if (key.isPurged) return 'not_found';
  const isOver = state.nowMs - key.deleted.atMs >= undoWindowMs;
  const isOrphan = key.row !== 'default' && state.partner.deletedAtMs !== null;
  if (key.deleted.reason === 'compromised' || isOver || isOrphan) return 'not_restorable';
  return liveIn(state, key.row).length >= 2 ? 'row_full' : undefined;
}

export function verdictOf(state: ModelState, key: ModelKey, asked: Asked): string {
  if (key.isPurged) return 'not_found';
  if (key.deleted !== null) return 'deleted';
  if (key.isSuspended) return 'suspended';
  if (key.row !== 'default' && state.partner.isSuspended) return 'partner_suspended';
  if (isExpired(state, key)) return 'expired';
  return key.row === 'default' || key.row === asked ? 'valid' : 'insufficient_permission';
}

export function takenWithPartner({ keys, partner }: ModelState): ModelKey[] {
  return keys.filter((key) => key.deleted?.reason === 'partner_deleted' && key.deleted.atMs === partner.deletedAtMs);
}

export function dueForPurge({ keys, nowMs }: ModelState): ModelKey[] {
  return keys.filter((key) => key.deleted !== null && !key.isPurged && nowMs - key.deleted.atMs >= retentionMs);
}
