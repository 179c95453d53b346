import { endClaimsOfKeys } from '../claims/end-commands.ts';
import type { Secret } from '../crypto/secret.ts';
import type { DeleteReason } from '../database/tables/api-keys.ts';
import type { OrganizationContext, Work } from '../database/work.ts';
import { type ExpectedTags, requireExpected } from '../domain/entity-tag.ts';
import { Problem } from '../domain/errors.ts';
import type { PartnerId } from '../domain/ids.ts';
import type { Permission } from '../domain/permissions.ts';
import { type RateLimit, toRateLimit, toRateLimitColumns } from '../domain/rate-limit.ts';
import { changesBetween } from '../history/changes.ts';
import { record } from '../history/record.ts';
import { withoutUndefined } from '../lib/without-undefined.ts';
import { lockOrganization, lockOrganizationShared, type Organization } from '../organizations/store.ts';
import { requireLivePartner } from '../partners/policy.ts';
import { lockPartner, type Partner } from '../partners/store.ts';
import { expiryFor } from './lifetime-policy.ts';
import type { MintedKey } from './mint.ts';
import { becomesCompromised, keyTag, permissionOfNewKey, placeIn, requireLiveKey } from './policy.ts';
import {
  findSealed,
  insertKey,
  type Key,
  type KeyFields,
  lockKey,
  lockLiveKeysOfRow,
  markKeysDeleted,
  markKeysSuspended,
  type RowAddress,
  type SealedColumns,
  type ShownKey,
  updateKey,
  withLastUse,
} from './store.ts';

export interface KeySettings {
  name: string | null;
  expiresAt: Date | null;
  rateLimit: RateLimit | null;
  allowedIps: string[];
  scopes: string[];
  metadata: Record<string, unknown>;
}

/** The settings of a new key. An undefined expiry is the organization's default. */
export type NewKeySettings = Omit<KeySettings, 'expiresAt'> & { expiresAt: Date | null | undefined };

export const defaultSettings: NewKeySettings = {
  name: null,
  expiresAt: undefined,
  rateLimit: null,
  allowedIps: [],
  scopes: [],
  metadata: {},
};

export interface NewKeyRequest extends Partial<{ [Field in keyof KeySettings]: KeySettings[Field] | undefined }> {
  /** Undefined for the organization's default row. */
  partnerId?: string | undefined;
  permission?: Permission | undefined;
}

/** A new key and its plaintext, which only the reply to its creation contains. */
export interface CreatedKey {
  key: Key;
  plaintext: Secret;
}

/**
 * Creates a key.
 * @param minted made before the transaction, so that no lock is held during hashing
 * @throws Problem `not_found` (partner), `already_deleted` (partner), `validation_failed` (permission, expiry),
 * `row_full`
 */
export async function createKey(
  work: Work<OrganizationContext>,
  minted: MintedKey,
  given: NewKeyRequest,
): Promise<CreatedKey> {
  const owner = await lockOwner(work, given.partnerId);
  const permission = permissionOfNewKey(owner.partner?.permissions ?? null, given.permission);
  return addKey(work, { ...owner, permission, minted, settings: toSettings(given) });
}

export interface Owner {
  partner: Partner | null;
  organization: Organization;
}

/** Locks what a new key depends on: its partner must stay live, and the organization's settings must not change. */
export async function lockOwner(work: Work<OrganizationContext>, partnerId: string | undefined): Promise<Owner> {
  const { organizationId } = work.by;
  if (partnerId === undefined) {
    const organization = await lockOrganization(work.tx, organizationId);
    return { partner: null, organization };
  }
  const organization = await lockOrganizationShared(work.tx, organizationId);
  const partner = await lockPartner(work.tx, organizationId, partnerId);
  requireLivePartner(partner);
  return { partner, organization };
}

/**
 * A free place of a row for another key. If the row is full and a member has expired, deletes the one that expired first.
 * The caller has locked the owner.
 * @throws Problem `row_full`
 */
export async function takePlace(work: Work<OrganizationContext>, row: RowAddress): Promise<1 | 2> {
  const { slot, replaced } = placeIn(await lockLiveKeysOfRow(work.tx, row), work.now);
  if (replaced !== undefined) await deleteKeys(work, [replaced], 'expired');
  return slot;
}

interface KeyToAdd extends Owner {
  permission: Permission;
  minted: MintedKey;
  settings: NewKeySettings;
  /** In a rotation, the key that this one replaces. */
  replaces?: Pick<Key, 'id' | 'limit_bucket_id'>;
}

/** Adds a minted key to its row and records it. The caller has locked the owner. */
export async function addKey(work: Work<OrganizationContext>, input: KeyToAdd): Promise<CreatedKey> {
  const { minted, organization } = input;
  const decision = { rules: organization, now: work.now, path: 'body.expiresAt' };
  const settings = { ...input.settings, expiresAt: expiryFor(input.settings.expiresAt, decision) };
  const partnerId: PartnerId | null = input.partner?.id ?? null;
  const row = { organizationId: work.by.organizationId, partnerId, permission: input.permission };
  const slot = await takePlace(work, row);
  const key = await insertKey(work, {
    id: minted.id,
    organization_id: row.organizationId,
    partner_id: partnerId,
    permission: input.permission,
    slot,
    origin: 'created',
    digest_sealed: null,
    digest_keyring_id: null,
    ...minted.columns,
    ...(organization.key_reveal === 'allowed' ? minted.sealed : { sealed: null, sealed_keyring_id: null }),
    ...toColumns(settings),
    replaces_key_id: input.replaces?.id ?? null,
    limit_bucket_id: input.replaces?.limit_bucket_id ?? input.replaces?.id ?? null,
    created_at: work.now,
    created_by: work.by.actor,
  });
  record(work, {
    action: 'key.created',
    keyId: key.id,
    partnerId,
    details: {
      permission: key.permission,
      ...describe(settings),
      ...(input.replaces === undefined ? {} : { replacesKeyId: input.replaces.id }),
    },
  });
  return { key, plaintext: minted.plaintext };
}

export type KeyPatch = Partial<{ [Field in keyof KeySettings]: KeySettings[Field] | undefined }>;

/**
 * Changes a key's settings. @throws Problem `not_found`, `already_deleted`, `precondition_failed`, `validation_failed`
 * (expiry in the past or beyond the maximum lifetime)
 */
export async function patchKey(
  work: Work<OrganizationContext>,
  keyId: string,
  patch: KeyPatch,
  expected: ExpectedTags,
): Promise<ShownKey> {
  const { tx, now } = work;
  const { organizationId } = work.by;
  const rules = patch.expiresAt === undefined ? undefined : await lockOrganizationShared(tx, organizationId);
  const key = await lockKey(tx, organizationId, keyId);
  requireLiveKey(key);
  requireExpected(expected, keyTag(key));
  const present = settingsOf(key);
  const changes = changesBetween(describe(present), describePatch(patch));
  if (Object.keys(changes).length === 0) return withLastUse(tx, key);
  if (rules !== undefined && changes['expiresAt'] !== undefined) {
    expiryFor(patch.expiresAt, { rules, now, path: 'body.expiresAt', present: key });
  }
  const changed = await updateKey(work, key.id, toColumns({ ...present, ...givenSettings(patch) }));
  record(work, { action: 'key.updated', keyId: key.id, partnerId: key.partner_id, details: { changes } });
  return withLastUse(tx, changed);
}

export interface RevealRequest {
  reason?: string | undefined;
  recipient?: string | undefined;
}

/**
 * Records the reveal. Unseal the value only after the commit.
 * @throws Problem `not_found`, `already_deleted`, `reveal_disabled`
 */
export async function recordReveal(
  work: Work<OrganizationContext>,
  keyId: string,
  given: RevealRequest,
): Promise<RevealableKey> {
  const revealable = await lockRevealableKey(work, keyId);
  const { key } = revealable;
  record(work, {
    action: 'key.revealed',
    keyId: key.id,
    partnerId: key.partner_id,
    details: { reason: given.reason ?? null, recipient: given.recipient ?? null },
  });
  return revealable;
}

export interface RevealableKey {
  key: Key;
  sealed: SealedColumns;
}

/**
 * Locks a key whose plaintext may be revealed. The caller records who gets it.
 * @throws Problem `not_found`, `already_deleted`, `reveal_disabled`
 */
export async function lockRevealableKey(work: Work<OrganizationContext>, keyId: string): Promise<RevealableKey> {
  const organization = await lockOrganizationShared(work.tx, work.by.organizationId);
  const key = await lockKey(work.tx, work.by.organizationId, keyId);
  requireLiveKey(key);
  const sealed = await findSealed(work.tx, key.id);
  if (organization.key_reveal === 'never') {
    throw new Problem('reveal_disabled', 'keyReveal is set to never in this organization.');
  }
  if (sealed === undefined) {
    throw new Problem(
      'reveal_disabled',
      `The plaintext of key ${key.id} is not stored: ${key.origin === 'imported' ? 'it was imported by its SHA-256, or ' : ''}` +
        `keyReveal was never when the key was ${key.origin}, or was set to never later, which deleted the plaintext. ` +
        'Rotate the key, or create a second one in its row.',
    );
  }
  return { key, sealed };
}

/**
 * Deletes a key. A deleted key can still be declared compromised, which makes the deletion permanent.
 * @throws Problem `not_found`, `already_deleted`
 */
export async function deleteKey(
  work: Work<OrganizationContext>,
  keyId: string,
  reason: DeleteReason,
): Promise<ShownKey> {
  const key = await lockKey(work.tx, work.by.organizationId, keyId);
  if (!becomesCompromised(key, { action: 'delete', reason })) requireLiveKey(key);
  const [deleted] = await deleteKeys(work, [key], reason);
  if (deleted === undefined) throw new Error(`Key ${key.id} was not found although it is locked`);
  return withLastUse(work.tx, deleted);
}

/** Deletes locked keys with their pending claims, and records each deletion. */
export async function deleteKeys(
  work: Work<OrganizationContext>,
  keys: readonly Key[],
  reason: DeleteReason,
): Promise<Key[]> {
  const ids = keys.map((key) => key.id);
  const deleted = await markKeysDeleted(work, ids, { at: work.now, reason });
  for (const key of keys) {
    // A key that is already deleted keeps its first deletion time.
    const details = { reason, deletedAt: (key.deleted_at ?? work.now).toISOString() };
    record(work, { action: 'key.deleted', keyId: key.id, partnerId: key.partner_id, details });
  }
  await endClaimsOfKeys(work, ids, 'key_deleted');
  return deleted;
}

export function toSettings(given: KeyPatch): NewKeySettings {
  return { ...defaultSettings, ...givenSettings(given) };
}

/** Only the settings: a request for a new key has further members. */
function givenSettings({ name, expiresAt, rateLimit, allowedIps, scopes, metadata }: KeyPatch): Partial<KeySettings> {
  return withoutUndefined({ name, expiresAt, rateLimit, allowedIps, scopes, metadata });
}

export function settingsOf(
  key: Pick<
    Key,
    'name' | 'expires_at' | 'allowed_ips' | 'scopes' | 'metadata' | keyof ReturnType<typeof toRateLimitColumns>
  >,
): KeySettings {
  return {
    name: key.name,
    expiresAt: key.expires_at,
    rateLimit: toRateLimit(key),
    allowedIps: key.allowed_ips,
    scopes: key.scopes,
    metadata: key.metadata,
  };
}

export function toColumns(settings: KeySettings): Required<KeyFields> {
  return {
    name: settings.name,
    expires_at: settings.expiresAt,
    allowed_ips: settings.allowedIps,
    scopes: settings.scopes,
    metadata: settings.metadata,
    ...toRateLimitColumns(settings.rateLimit),
  };
}

/** Settings in the form of history events. */
export function describe(settings: KeySettings): Record<string, unknown> {
  return { ...settings, expiresAt: settings.expiresAt?.toISOString() ?? null };
}

function describePatch(patch: KeyPatch): Record<string, unknown> {
  const given = givenSettings(patch);
  return given.expiresAt == null ? given : { ...given, expiresAt: given.expiresAt.toISOString() };
}

/** Suspended, with an optional reason, or not. */
export type Suspension = { isSuspended: true; reason: string | null } | { isSuspended: false };

/**
 * Suspends or resumes a key. Resuming does not revive an expired key. A suspended key keeps its first reason.
 * @throws Problem `not_found`, `already_deleted`
 */
export async function setKeySuspended(
  work: Work<OrganizationContext>,
  keyId: string,
  suspension: Suspension,
): Promise<ShownKey> {
  const key = await lockKey(work.tx, work.by.organizationId, keyId);
  requireLiveKey(key);
  if (suspension.isSuspended === (key.suspended_at !== null)) return withLastUse(work.tx, key);
  const [changed] = await setKeysSuspended(work, [key], suspension);
  if (changed === undefined) throw new Error(`Key ${key.id} was not found although it is locked`);
  return withLastUse(work.tx, changed);
}

/** Suspends or resumes locked keys that are not yet so, and records each. */
export async function setKeysSuspended(
  work: Work<OrganizationContext>,
  keys: ReadonlyArray<Pick<Key, 'id' | 'partner_id'>>,
  suspension: Suspension,
): Promise<Key[]> {
  const { isSuspended } = suspension;
  const reason = isSuspended ? suspension.reason : null;
  const columns = isSuspended
    ? { suspended_at: work.now, suspended_reason: reason }
    : { suspended_at: null, suspended_reason: null, resumed_at: work.now };
  const changed = await markKeysSuspended(
    work.tx,
    keys.map(({ id }) => id),
    columns,
  );
  for (const key of keys) {
    const { action, details } = suspensionEvent(work, 'key', isSuspended);
    const given = isSuspended ? { ...details, reason } : details;
    record(work, { action, details: given, keyId: key.id, partnerId: key.partner_id });
  }
  return changed;
}

/** The event for suspending or resuming a key or partner. */
export function suspensionEvent<Kind extends 'key' | 'partner'>({ now }: Work, kind: Kind, isSuspended: boolean) {
  return isSuspended
    ? ({ action: `${kind}.suspended`, details: { suspendedAt: now.toISOString() } } as const)
    : ({ action: `${kind}.resumed`, details: {} } as const);
}
