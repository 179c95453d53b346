import type { OrganizationContext, Work } from '../database/work.ts';
import { type ExpectedTags, entityTagOf, requireExpected } from '../domain/entity-tag.ts';
import { newId } from '../domain/ids.ts';
import { type Access, sortAccesses } from '../domain/permissions.ts';
import { type RateLimit, toRateLimit, toRateLimitColumns } from '../domain/rate-limit.ts';
import { changesBetween } from '../history/changes.ts';
import { record } from '../history/record.ts';
import { addKey, type CreatedKey, defaultSettings, deleteKeys, type Owner, suspensionEvent } from '../keys/commands.ts';
import type { MintedKey } from '../keys/mint.ts';
import { lockLiveKeysOfPartner } from '../keys/store.ts';
import { withoutUndefined } from '../lib/without-undefined.ts';
import { lockOrganizationShared } from '../organizations/store.ts';
import { requireLivePartner } from './policy.ts';
import {
  insertPartner,
  lockPartner,
  markPartnerDeleted,
  markPartnerSuspended,
  type Partner,
  updatePartner,
} from './store.ts';

export interface NewPartner {
  email: string;
  permissions: Access[];
  name?: string | null | undefined;
  externalId?: string | null | undefined;
  metadata?: Record<string, unknown> | undefined;
  rateLimit?: RateLimit | null | undefined;
}

export interface CreatedPartner {
  partner: Partner;
  /** One key per permission, in the order read, write; or none. */
  keys: CreatedKey[];
}

/**
 * Creates a partner and one key per permission, all or nothing.
 * @param minted one per permission, or none for a partner without keys; made before the transaction so that no lock is held during hashing
 * @throws Problem `partner_exists`, `external_id_exists`
 */
export async function createPartner(
  work: Work<OrganizationContext>,
  minted: MintedKey[],
  given: NewPartner,
): Promise<CreatedPartner> {
  const permissions = sortAccesses(given.permissions);
  const organization = await lockOrganizationShared(work.tx, work.by.organizationId);
  const partner = await addPartner(work, given, permissions);
  return { partner, keys: await addFirstKeys(work, { partner, organization }, minted) };
}

async function addPartner(work: Work<OrganizationContext>, given: NewPartner, permissions: Access[]): Promise<Partner> {
  const partner: Partner = {
    id: newId('partner'),
    organization_id: work.by.organizationId,
    email: given.email,
    name: given.name ?? null,
    external_id: given.externalId ?? null,
    metadata: given.metadata ?? {},
    permissions,
    ...toRateLimitColumns(given.rateLimit ?? null),
    created_at: work.now,
    created_by: work.by.actor,
    suspended_at: null,
    deleted_at: null,
  };
  await insertPartner(work.tx, partner);
  record(work, { action: 'partner.created', partnerId: partner.id, details: { ...fieldsOf(partner) } });
  return partner;
}

async function addFirstKeys(
  work: Work<OrganizationContext>,
  owner: Owner & { partner: Partner },
  minted: MintedKey[],
): Promise<CreatedKey[]> {
  const created: CreatedKey[] = [];
  for (const [index, key] of minted.entries()) {
    const permission = owner.partner.permissions[index];
    if (permission === undefined) throw new Error('More keys were minted than permissions granted');
    created.push(await addKey(work, { ...owner, permission, minted: key, settings: defaultSettings }));
  }
  return created;
}

interface PartnerFieldValues {
  email: string;
  name: string | null;
  externalId: string | null;
  metadata: Record<string, unknown>;
  permissions: Access[];
  rateLimit: RateLimit | null;
}

export type PartnerPatch = { [Field in keyof PartnerFieldValues]?: PartnerFieldValues[Field] | undefined };

/**
 * Changes a partner. Removing a permission deletes that row's keys at once. Adding one creates no key.
 * @throws Problem `not_found`, `already_deleted`, `precondition_failed`, `partner_exists` (the new e-mail address),
 * `external_id_exists`
 */
export async function patchPartner(
  work: Work<OrganizationContext>,
  partnerId: string,
  patch: PartnerPatch,
  expected: ExpectedTags,
): Promise<Partner> {
  const partner = await lockPartner(work.tx, work.by.organizationId, partnerId);
  requireLivePartner(partner);
  requireExpected(expected, entityTagOf(partner));
  const present = fieldsOf(partner);
  const permissions = patch.permissions === undefined ? undefined : sortAccesses(patch.permissions);
  const changes = changesBetween({ ...present }, { ...patch, permissions });
  if (Object.keys(changes).length === 0) return partner;
  const next = { ...present, ...withoutUndefined({ ...patch, permissions }) };
  const fields = {
    email: next.email,
    name: next.name,
    external_id: next.externalId,
    metadata: next.metadata,
    permissions: next.permissions,
    ...toRateLimitColumns(next.rateLimit),
  };
  await updatePartner(work.tx, partner, fields);
  record(work, { action: 'partner.updated', partnerId: partner.id, details: { changes } });
  const removed = present.permissions.filter((permission) => !next.permissions.includes(permission));
  await deleteKeysOfRows(work, partner, removed, 'permission_removed');
  return { ...partner, ...fields };
}

/**
 * Deletes the partner and all its keys in one transaction.
 * @throws Problem `not_found`, `already_deleted`
 */
export async function deletePartner(work: Work<OrganizationContext>, partnerId: string): Promise<Partner> {
  const partner = await lockPartner(work.tx, work.by.organizationId, partnerId);
  requireLivePartner(partner);
  await markPartnerDeleted(work.tx, partner.id, work.now);
  const details = { email: partner.email, deletedAt: work.now.toISOString() };
  record(work, { action: 'partner.deleted', partnerId: partner.id, details });
  await deleteKeysOfRows(work, partner, partner.permissions, 'partner_deleted');
  return { ...partner, deleted_at: work.now };
}

async function deleteKeysOfRows(
  work: Work<OrganizationContext>,
  partner: Partner,
  permissions: readonly Access[],
  reason: 'partner_deleted' | 'permission_removed',
): Promise<void> {
  if (permissions.length === 0) return;
  await deleteKeys(work, await lockLiveKeysOfPartner(work.tx, partner.id, permissions), reason);
}

/**
 * Suspends or resumes a partner, and so rejects or accepts all its keys. Resuming does not resume keys that are suspended
 * themselves.
 * @throws Problem `not_found`, `already_deleted`
 */
export async function setPartnerSuspended(
  work: Work<OrganizationContext>,
  partnerId: string,
  isSuspended: boolean,
): Promise<Partner> {
  const partner = await lockPartner(work.tx, work.by.organizationId, partnerId);
  requireLivePartner(partner);
  if (isSuspended === (partner.suspended_at !== null)) return partner;
  const suspendedAt = isSuspended ? work.now : null;
  await markPartnerSuspended(work.tx, partner.id, suspendedAt);
  record(work, { ...suspensionEvent(work, 'partner', isSuspended), partnerId: partner.id });
  return { ...partner, suspended_at: suspendedAt };
}

function fieldsOf(partner: Partner): PartnerFieldValues {
  return {
    email: partner.email,
    name: partner.name,
    externalId: partner.external_id,
    metadata: partner.metadata,
    permissions: partner.permissions,
    rateLimit: toRateLimit(partner),
  };
}
