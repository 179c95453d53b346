import type { OrganizationContext, Work } from '../database/work.ts';
import { record } from '../history/record.ts';
import { addKey, type CreatedKey, lockOwner, type Owner, settingsOf } from './commands.ts';
import { type LifetimeRules, requireWithinLifetime } from './lifetime-policy.ts';
import type { MintedKey } from './mint.ts';
import { requireRotatableKey } from './policy.ts';
import { getKey, type Key, lockKey, requireAuthenticKey, updateKey } from './store.ts';

export interface RotateRequest {
  /** Undefined keeps the old key's expiry. */
  expireOldAfterSeconds?: number | undefined;
}

/**
 * Adds a second key with the settings of the first, and optionally an expiry to the first. Both share one limit
 * counter. The new key does not copy the expiry, because an expiry is a common reason to rotate.
 * @throws Problem `not_found`, `already_deleted`, `conflict` (not active, or not authentic), `row_full`,
 * `validation_failed` (the old key would live longer than it may)
 */
export async function rotateKey(
  work: Work<OrganizationContext>,
  minted: MintedKey,
  keyId: string,
  given: RotateRequest,
): Promise<CreatedKey> {
  return rotateLocked(work, minted, await lockForRotation(work, keyId), given);
}

interface KeyToRotate {
  owner: Owner;
  old: Key;
}

/** Locks the owner, then the key. @throws Problem `not_found`, `already_deleted` (partner) */
export async function lockForRotation(work: Work<OrganizationContext>, keyId: string): Promise<KeyToRotate> {
  const { partner_id: partnerId } = await getKey(work.tx, work.by.organizationId, keyId);
  const owner = await lockOwner(work, partnerId ?? undefined);
  return { owner, old: await lockKey(work.tx, work.by.organizationId, keyId) };
}

/** Rotates a locked key, as `rotateKey`. */
export async function rotateLocked(
  work: Work<OrganizationContext>,
  minted: MintedKey,
  { owner, old }: KeyToRotate,
  { expireOldAfterSeconds }: RotateRequest,
): Promise<CreatedKey> {
  requireRotatableKey(old, work.now);
  await requireAuthenticKey(work, old.id);
  const settings = { ...settingsOf(old), expiresAt: undefined };
  const created = await addKey(work, {
    ...owner,
    permission: old.permission,
    minted,
    settings,
    replaces: old,
  });
  const changes = await setEarlierExpiry(work, owner.organization, old, expireOldAfterSeconds);
  record(work, {
    action: 'key.rotated',
    keyId: old.id,
    partnerId: old.partner_id,
    details: { newKeyId: created.key.id, changes },
  });
  return created;
}

/** Keeps an earlier expiry. */
async function setEarlierExpiry(work: Work, rules: LifetimeRules, old: Key, afterSeconds: number | undefined) {
  if (afterSeconds === undefined) return {};
  const end = new Date(work.now.getTime() + afterSeconds * 1000);
  if (old.expires_at !== null && old.expires_at <= end) return {};
  requireWithinLifetime(end, { rules, now: work.now, path: 'body.expireOldAfterSeconds', present: old });
  await updateKey(work, old.id, { expires_at: end });
  return { expiresAt: { from: old.expires_at?.toISOString() ?? null, to: end.toISOString() } };
}
