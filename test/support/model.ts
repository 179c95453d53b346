/** The rules for keys, rows and claims, in their simplest form. A service that disagrees is wrong. */

export const hourMs = 3_600_000;
export const dayMs = 24 * hourMs;
export const undoWindowMs = dayMs;
export const retentionMs = 30 * dayMs;

export type RowName = 'default' | 'read' | 'write';
export type AskedPermission = 'read' | 'write';

export interface ModelKey {
  id: string;
  /** Null until a claim hands the key over. */
  plaintext: string | null;
  /** False for a key that was imported by its SHA-256. */
  isSealed: boolean;
  row: RowName;
  expiresAtMs: number | null;
  isSuspended: boolean;
  deleted: { atMs: number; reason: string } | null;
  isPurged: boolean;
}

export interface ModelClaim {
  id: string;
  code: string;
  key: ModelKey;
  expiresAtMs: number;
  end: 'redeemed' | 'cancelled' | 'expired' | null;
}

export interface ModelState {
  /** By how much the clock was moved, and one for each command. */
  nowMs: number;
  keys: ModelKey[];
  claims: ModelClaim[];
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
  const occupants = liveIn(state, row);
  return occupants.length >= 2 && firstExpired(state, occupants) === undefined ? 'row_full' : undefined;
}

function firstExpired(state: ModelState, keys: readonly ModelKey[]): ModelKey | undefined {
  const expired = keys.filter((key) => isExpired(state, key));
  return expired.sort((one, other) => (one.expiresAtMs ?? 0) - (other.expiresAtMs ?? 0))[0];
}

/** Deletes the first expired key of a full row, which a new key then replaces. */
export function takePlace(state: ModelState, row: RowName): void {
  const occupants = liveIn(state, row);
  const replaced = occupants.length < 2 ? undefined : firstExpired(state, occupants);
  if (replaced !== undefined) deleteKeys(state, [replaced], 'expired');
}

/** Deletes keys, which ends their claims. A key that is deleted keeps the time. */
export function deleteKeys(state: ModelState, keys: readonly ModelKey[], reason: string): void {
  for (const key of keys) {
    key.deleted = { atMs: key.deleted?.atMs ?? state.nowMs, reason };
    state.actions.push('key.deleted');
  }
  endClaimsOf(state, keys);
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

export function refusesReveal(key: ModelKey): Refusal {
  return refusesChange(key) ?? (key.isSealed ? undefined : 'reveal_disabled');
}

export const bulkActions = ['suspend', 'resume', 'delete'] as const;
export type BulkAction = (typeof bulkActions)[number];

/** Why a bulk request leaves a key as it is. */
export function whySkipped(key: ModelKey, action: BulkAction, reason: string): string | undefined {
  const refusal = action === 'delete' ? refusesDeletion(key, reason) : refusesChange(key);
  if (refusal !== undefined) return refusal;
  if (action === 'suspend' && key.isSuspended) return 'already_suspended';
  return action === 'resume' && !key.isSuspended ? 'not_suspended' : undefined;
}

export interface ModelEntry {
  row: RowName;
  token: string;
  expiresAtMs: number | null;
}

/** What is wrong with the entries of an import; empty if all of them fit. Finds out with a copy of the state. */
export function flawsOfImport(state: ModelState, entries: readonly ModelEntry[]): string[] {
  const trial = structuredClone(state);
  return entries.flatMap(({ row, token, expiresAtMs }, index) => {
    const isRepeated = entries.slice(0, index).some((earlier) => earlier.token === token);
    const isTaken = state.keys.some((key) => key.plaintext === token && holdsToken(key));
    const flaws = isRepeated ? ['validation_failed'] : isTaken ? ['key_exists'] : [];
    const refusal = refusesNewKey(trial, row);
    if (refusal === 'already_deleted' || (refusal === 'row_full' && flaws.length === 0)) return [...flaws, refusal];
    if (flaws.length === 0) addKey(trial, { id: '', plaintext: token, isSealed: false, row, expiresAtMs });
    return flaws;
  });
}

/** A token of a compromised or purged key is free. */
const holdsToken = ({ deleted, isPurged }: ModelKey) => !isPurged && deleted?.reason !== 'compromised';

/** The key that a token is verified as. */
export function keyOfToken({ keys }: ModelState, key: ModelKey): ModelKey {
  const sameToken = keys.filter(({ plaintext }) => plaintext === key.plaintext);
  return sameToken.find(holdsToken) ?? sameToken.find(({ isPurged }) => !isPurged) ?? key;
}

type NewKey = Pick<ModelKey, 'id' | 'plaintext' | 'isSealed' | 'row' | 'expiresAtMs'>;

/** Adds a key to its row, where it replaces an expired one if the row is full. */
export function addKey(state: ModelState, given: NewKey): ModelKey {
  takePlace(state, given.row);
  const key = { ...given, isSuspended: false, deleted: null, isPurged: false };
  state.keys.push(key);
  return key;
}

export function claimStatusOf({ nowMs }: ModelState, { end, expiresAtMs }: ModelClaim): string {
  return end ?? (expiresAtMs <= nowMs ? 'expired' : 'pending');
}

/** Ends claims that have not ended: those whose time is over have expired, the others are cancelled. */
export function endClaims(state: ModelState, claims: readonly ModelClaim[]): void {
  for (const claim of claims.filter(({ end }) => end === null)) {
    claim.end = claimStatusOf(state, claim) === 'expired' ? 'expired' : 'cancelled';
    state.actions.push(`claim.${claim.end}`);
  }
}

export function endClaimsOf(state: ModelState, keys: readonly ModelKey[]): void {
  endClaims(
    state,
    state.claims.filter(({ key }) => keys.includes(key)),
  );
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
