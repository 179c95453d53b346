import type { OrganizationContext, Work } from '../database/work.ts';
import { type CreatedKey, deleteKey } from '../keys/commands.ts';
import type { MintedKey } from '../keys/mint.ts';
import { lockForRotation, type RotateRequest, rotateLocked } from '../keys/rotate-commands.ts';
import { lockKey, type ShownKey } from '../keys/store.ts';
import { lockOrganizationShared } from '../organizations/store.ts';
import { requireMayRevokeItself, requireMayRotateItself, requireSelfService } from './policy.ts';

/** Changes that the holder of a key makes with the key itself. It is the actor in history. */

/**
 * Adds a second key to the row of the key that acts. @param ip the holder's address
 * @throws Problem `unauthorized`, `token_expired`, `forbidden` (address), `self_service_disabled`, `row_full`,
 * `conflict` (not authentic), `already_deleted` (partner), `validation_failed`
 */
export async function rotateItself(
  work: Work<OrganizationContext>,
  minted: MintedKey,
  given: RotateRequest,
  ip: string,
): Promise<CreatedKey> {
  const locked = await lockForRotation(work, work.by.actor.id);
  const { old, owner } = locked;
  requireMayRotateItself({ ...old, partner_suspended_at: owner.partner?.suspended_at ?? null }, ip, work.now);
  requireSelfService(owner.organization);
  return rotateLocked(work, minted, locked, given);
}

/**
 * Deletes the key that acts, whatever its state.
 * @throws Problem `unauthorized` (it is deleted already), `self_service_disabled`
 */
export async function revokeItself(work: Work<OrganizationContext>): Promise<ShownKey> {
  const organization = await lockOrganizationShared(work.tx, work.by.organizationId);
  const key = await lockKey(work.tx, work.by.organizationId, work.by.actor.id);
  requireMayRevokeItself(key);
  requireSelfService(organization);
  return deleteKey(work, key.id, 'owner_request');
}
