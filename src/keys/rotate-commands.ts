import type { OrganizationContext, Work } from '../database/work.ts';
import { record } from '../history/record.ts';
import { addKey, type CreatedKey, lockOwner, settingsOf } from './commands.ts';
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
 * @throws Problem `not_found`, `already_deleted`, `conflict` (not active, or not authentic), `row_full`
 */
export async function rotateKey(
  work: Work<OrganizationContext>,
  minted: MintedKey,
  keyId: string,
  { expireOldAfterSeconds }: RotateRequest,
): Promise<CreatedKey> {
  const { partner_id: partnerId } = await getKey(work.tx, work.by.organizationId, keyId);
  const owner = await lockOwner(work, partnerId ?? undefined);
  const old = await lockKey(work.tx, work.by.organizationId, keyId);
  requireRotatableKey(old, work.now);
  await requireAuthenticKey(work, old.id);
  const settings = { ...settingsOf(old), expiresAt: null };
  const created = await addKey(work, {
    ...owner,
    permission: old.permission,
    minted,
    settings,
    replaces: old,
  });
  const changes = await setEarlierExpiry(work, old, expireOldAfterSeconds);
  record(work, {
    action: 'key.rotated',
    keyId: old.id,
    partnerId,
    details: { newKeyId: created.key.id, changes },
  });
  return created;
}

/** Keeps an earlier expiry. */
async function setEarlierExpiry(work: Work, old: Key, afterSeconds: number | undefined) {
  if (afterSeconds === undefined) return {};
  const end = new Date(work.now.getTime() + afterSeconds * 1000);
  if (old.expires_at !== null && old.expires_at <= end) return {};
  await updateKey(work, old.id, { expires_at: end });
  return { expiresAt: { from: old.expires_at?.toISOString() ?? null, to: end.toISOString() } };
}
