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
import { lockOrganization, shareOrganization } from '../organizations/store.ts';
import { lockPartner, type Partner } from '../partners/store.ts';
import type { MintedKey } from './mint.ts';
import { freeSlot, keyTag, permissionFor, requireFuture, requireLiveKey } from './policy.ts';
import {
  findSealed,
  insertKey,
  type Key,
  type KeyFields,
  liveKeysOfRow,
  lockKey,
  markKeySuspended,
  markKeysDeleted,
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
  metadata: Record<string, unknown>;
}

export const plainSettings: KeySettings = {
  name: null,
  expiresAt: null,
  rateLimit: null,
  allowedIps: [],
  metadata: {},
};

export interface NewKeyRequest extends Partial<{ [Field in keyof KeySettings]: KeySettings[Field] | undefined }> {
  /** Undefined: the organization's default row. */
  partnerId?: string | undefined;
  permission?: Permission | undefined;
}

/** A key and its plaintext, together only in the reply that creates it. */
export interface CreatedKey {
  key: Key;
  plaintext: Secret;
}

/**
 * @param minted before the transaction, because a hash takes 25 ms and must not hold a lock
 * @throws Problem `not_found` (partner), `already_deleted` (partner), `validation_failed` (permission, expiry), `row_full`
 */
export async function createKey(
  work: Work<OrganizationContext>,
  minted: MintedKey,
  given: NewKeyRequest,
): Promise<CreatedKey> {
  const owner = await lockOwner(work, given.partnerId);
  const permission = permissionFor(owner.partner?.permissions ?? null, given.permission);
  return addKey(work, { ...owner, permission, minted, settings: toSettings(given) });
}

export interface Owner {
  partner: Partner | null;
  mayBeRevealed: boolean;
}

/** Locks what the new key depends on: its owner must stay live, and the organization must go on keeping plaintexts. */
export async function lockOwner(work: Work<OrganizationContext>, partnerId: string | undefined): Promise<Owner> {
  const { organizationId } = work.by;
  if (partnerId === undefined) {
    const organization = await lockOrganization(work.tx, organizationId);
    return { partner: null, mayBeRevealed: organization.key_reveal === 'allowed' };
  }
  const organization = await shareOrganization(work.tx, organizationId);
  const partner = await lockPartner(work.tx, organizationId, partnerId);
  if (partner.deleted_at !== null) {
    throw new Problem('already_deleted', `Partner ${partner.id} was deleted at ${partner.deleted_at.toISOString()}.`);
  }
  return { partner, mayBeRevealed: organization.key_reveal === 'allowed' };
}

interface KeyToAdd extends Owner {
  permission: Permission;
  minted: MintedKey;
  settings: KeySettings;
  /** The key that it replaces, in a rotation. */
  replaces?: Pick<Key, 'id' | 'limit_bucket_id'>;
}

/** Puts a minted key into its row and records it. The owner is locked by the caller. */
export async function addKey(work: Work<OrganizationContext>, wanted: KeyToAdd): Promise<CreatedKey> {
  const { minted, settings } = wanted;
  requireFuture(settings.expiresAt, work.now);
  const partnerId: PartnerId | null = wanted.partner?.id ?? null;
  const row = { organizationId: work.by.organizationId, partnerId, permission: wanted.permission };
  const slot = freeSlot(await liveKeysOfRow(work.tx, row));
  const key = await insertKey(work, {
    id: minted.id,
    organization_id: row.organizationId,
    partner_id: partnerId,
    permission: wanted.permission,
    slot,
    ...minted.columns,
    ...(wanted.mayBeRevealed ? minted.sealed : { sealed: null, sealed_keyring_id: null }),
    ...toColumns(settings),
    replaces_key_id: wanted.replaces?.id ?? null,
    limit_bucket_id: wanted.replaces?.limit_bucket_id ?? wanted.replaces?.id ?? null,
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
      ...(wanted.replaces === undefined ? {} : { replacesKeyId: wanted.replaces.id }),
    },
  });
  return { key, plaintext: minted.plaintext };
}

export type KeyPatch = Partial<{ [Field in keyof KeySettings]: KeySettings[Field] | undefined }>;

/** @throws Problem `not_found`, `already_deleted`, `precondition_failed`, `validation_failed` (expiry in the past) */
export async function patchKey(
  work: Work<OrganizationContext>,
  keyId: string,
  patch: KeyPatch,
  expected: ExpectedTags,
): Promise<ShownKey> {
  const key = await lockKey(work.tx, work.by.organizationId, keyId);
  requireLiveKey(key);
  requireExpected(expected, keyTag(key));
  const present = settingsOf(key);
  const changes = changesBetween(describe(present), describePatch(patch));
  if (Object.keys(changes).length === 0) return withLastUse(work.tx, key);
  if (changes['expiresAt'] !== undefined) requireFuture(patch.expiresAt ?? null, work.now);
  const changed = await updateKey(work, key.id, toColumns({ ...present, ...withoutUndefined(patch) }));
  record(work, { action: 'key.updated', keyId: key.id, partnerId: key.partner_id, details: { changes } });
  return withLastUse(work.tx, changed);
}

export interface RevealRequest {
  reason?: string | undefined;
  recipient?: string | undefined;
}

/**
 * Records the reveal. The sealed value may be opened only when that is committed.
 * @throws Problem `not_found`, `already_deleted`, `reveal_disabled`
 */
export async function recordReveal(
  work: Work<OrganizationContext>,
  keyId: string,
  given: RevealRequest,
): Promise<{ key: Key; sealed: SealedColumns }> {
  const organization = await shareOrganization(work.tx, work.by.organizationId);
  const key = await lockKey(work.tx, work.by.organizationId, keyId);
  requireLiveKey(key);
  const sealed = await findSealed(work.tx, key.id);
  if (organization.key_reveal === 'never') {
    throw new Problem('reveal_disabled', 'This organization has keyReveal set to never.');
  }
  if (sealed === undefined) {
    throw new Problem(
      'reveal_disabled',
      `The plaintext of key ${key.id} is not stored: keyReveal was never when the key was created, or was set to never ` +
        'since, which wiped it. Rotate the key, or create a second one in its row.',
    );
  }
  record(work, {
    action: 'key.revealed',
    keyId: key.id,
    partnerId: key.partner_id,
    details: { reason: given.reason ?? null, recipient: given.recipient ?? null },
  });
  return { key, sealed };
}

/**
 * From the moment of the commit the key is refused everywhere. A key that was deleted for another reason can still be
 * declared compromised, which ends its restorability.
 * @throws Problem `not_found`, `already_deleted`
 */
export async function deleteKey(
  work: Work<OrganizationContext>,
  keyId: string,
  reason: DeleteReason,
): Promise<ShownKey> {
  const key = await lockKey(work.tx, work.by.organizationId, keyId);
  const worsens = reason === 'compromised' && key.delete_reason !== 'compromised';
  if (!worsens) requireLiveKey(key);
  const [deleted] = await deleteKeys(work, [key], reason);
  if (deleted === undefined) throw new Error(`key ${key.id} vanished while it was locked`);
  return withLastUse(work.tx, deleted);
}

/** Deletes locked keys and records each. */
export async function deleteKeys(
  work: Work<OrganizationContext>,
  keys: readonly Key[],
  reason: DeleteReason,
): Promise<Key[]> {
  const ids = keys.map((key) => key.id);
  const deleted = await markKeysDeleted(work, ids, { at: work.now, reason });
  for (const key of keys) {
    // A key that was deleted before keeps the time of that.
    const details = { reason, deletedAt: (key.deleted_at ?? work.now).toISOString() };
    record(work, { action: 'key.deleted', keyId: key.id, partnerId: key.partner_id, details });
  }
  return deleted;
}

function toSettings(given: KeyPatch): KeySettings {
  return { ...plainSettings, ...withoutUndefined(given) };
}

function withoutUndefined(patch: KeyPatch): Partial<KeySettings> {
  const { name, expiresAt, rateLimit, allowedIps, metadata } = patch;
  return {
    ...(name === undefined ? {} : { name }),
    ...(expiresAt === undefined ? {} : { expiresAt }),
    ...(rateLimit === undefined ? {} : { rateLimit }),
    ...(allowedIps === undefined ? {} : { allowedIps }),
    ...(metadata === undefined ? {} : { metadata }),
  };
}

export function settingsOf(key: Key): KeySettings {
  return {
    name: key.name,
    expiresAt: key.expires_at,
    rateLimit: toRateLimit(key),
    allowedIps: key.allowed_ips,
    metadata: key.metadata,
  };
}

function toColumns(settings: KeySettings): Required<KeyFields> {
  return {
    name: settings.name,
    expires_at: settings.expiresAt,
    allowed_ips: settings.allowedIps,
    metadata: settings.metadata,
    ...toRateLimitColumns(settings.rateLimit),
  };
}

/** Settings as history shows them. */
function describe(settings: KeySettings): Record<string, unknown> {
  return { ...settings, expiresAt: settings.expiresAt?.toISOString() ?? null };
}

function describePatch(patch: KeyPatch): Record<string, unknown> {
  const given = withoutUndefined(patch);
  return given.expiresAt == null ? given : { ...given, expiresAt: given.expiresAt.toISOString() };
}

/**
 * Suspends or resumes a key. From the commit on a suspended key is rejected everywhere; one that has expired meanwhile
 * stays so when it is resumed.
 * @throws Problem `not_found`, `already_deleted`
 */
export async function setKeySuspended(
  work: Work<OrganizationContext>,
  keyId: string,
  isSuspended: boolean,
): Promise<ShownKey> {
  const key = await lockKey(work.tx, work.by.organizationId, keyId);
  requireLiveKey(key);
  if (isSuspended === (key.suspended_at !== null)) return withLastUse(work.tx, key);
  const changed = await markKeySuspended(work.tx, key.id, isSuspended ? work.now : null);
  record(work, { ...suspensionEvent(work, 'key', isSuspended), keyId: key.id, partnerId: key.partner_id });
  return withLastUse(work.tx, changed);
}

/** What history says when a key or a partner is suspended or resumed. */
export function suspensionEvent<Kind extends 'key' | 'partner'>({ now }: Work, kind: Kind, isSuspended: boolean) {
  return isSuspended
    ? ({ action: `${kind}.suspended`, details: { suspendedAt: now.toISOString() } } as const)
    : ({ action: `${kind}.resumed`, details: {} } as const);
}
