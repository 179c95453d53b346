import { isAuthenticClaim } from '../credentials/record-mac.ts';
import { unseal } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import type { OrganizationContext, Work } from '../database/work.ts';
import { Problem, validationProblems } from '../domain/errors.ts';
import { record } from '../history/record.ts';
import { createKey, lockRevealableKey, type NewKeyRequest } from '../keys/commands.ts';
import { sealBinding as keySealBinding, type MintedKey } from '../keys/mint.ts';
import { type RotateRequest, rotateKey } from '../keys/rotate-commands.ts';
import { type Key, lockKeyIncludingPurged } from '../keys/store.ts';
import { getOrganization } from '../organizations/store.ts';
import { getPartner } from '../partners/store.ts';
import { endClaimsOfKeys } from './end-commands.ts';
import { hashOfCode, type MintedClaim, protectClaim } from './mint.ts';
import { claimGone, statusOf } from './policy.ts';
import {
  type Claim,
  insertClaim,
  isEndRecorded,
  lockSecretClaim,
  markEnded,
  type ProtectedColumns,
  type SecretClaim,
} from './store.ts';

/** The key that a claim hands over. New keys are minted before the transaction. */
export type ClaimSubject =
  | { newKey: NewKeyRequest; minted: MintedKey }
  | { rotate: RotateRequest & { keyId: string }; minted: MintedKey }
  | { keyId: string };

export interface CreatedClaim {
  claim: Claim;
  key: Key;
  code: Secret;
}

/**
 * Creates a claim, and its key unless it exists. An earlier claim of the key is cancelled.
 * @throws Problem as `createKey`, `rotateKey` and `lockRevealableKey`; SealBroken
 */
export async function createClaim(
  work: Work<OrganizationContext>,
  { id, code }: MintedClaim,
  { subject, ttlSeconds }: { subject: ClaimSubject; ttlSeconds: number },
): Promise<CreatedClaim> {
  const { key, plaintext } = await keyOf(work, subject);
  await endClaimsOfKeys(work, [key.id], 'replaced');
  const facts = {
    id,
    organization_id: key.organization_id,
    partner_id: key.partner_id,
    key_id: key.id,
    expires_at: new Date(work.now.getTime() + ttlSeconds * 1000),
    code_hash: hashOfCode(code),
  };
  const claim = await insertClaim(work.tx, {
    ...facts,
    ...protectClaim(work.keyring, facts, plaintext),
    created_at: work.now,
    created_by: work.by.actor,
  });
  const details = { claimId: id, expiresAt: facts.expires_at.toISOString() };
  record(work, { action: 'claim.created', keyId: key.id, partnerId: key.partner_id, details });
  return { claim, key, code };
}

async function keyOf(work: Work<OrganizationContext>, subject: ClaimSubject): Promise<{ key: Key; plaintext: Secret }> {
  if ('newKey' in subject) return withPaths('newKey', () => createKey(work, subject.minted, subject.newKey));
  if ('rotate' in subject) {
    return withPaths('rotate', () => rotateKey(work, subject.minted, subject.rotate.keyId, subject.rotate));
  }
  const { key, sealed } = await lockRevealableKey(work, subject.keyId);
  const binding = keySealBinding(key.organization_id, key.id);
  return {
    key,
    plaintext: unseal(work.keyring, { keyringId: sealed.sealed_keyring_id, sealed: sealed.sealed }, binding),
  };
}

/** Corrects the paths of input errors for a body that contains another request. */
async function withPaths<Result>(member: string, act: () => Promise<Result>): Promise<Result> {
  try {
    return await act();
  } catch (error) {
    if (!(error instanceof Problem) || error.code !== 'validation_failed' || error.errors === undefined) throw error;
    throw validationProblems(
      error.errors.map(({ path, message }) => ({ path: path.replace(/^body/, `body.${member}`), message })),
    );
  }
}

/** A claim that can be redeemed: its secrets are stored and authentic. */
export type OpenClaim = SecretClaim & ProtectedColumns & { code_hash: Buffer };

/** What a redemption hands over, before the plaintext is opened. */
export interface Redemption {
  claim: OpenClaim;
  key: Key;
  organizationName: string;
  partnerEmail: string | null;
}

/**
 * Ends a claim by its redemption and records it. Open the sealed value only after the commit.
 * @param found the claim as it was read without a lock
 * @throws Problem `claim_gone`
 */
export async function recordRedemption(
  work: Work<OrganizationContext>,
  found: OpenClaim,
  redeemedFrom: string,
): Promise<Redemption> {
  const { tx, by, now } = work;
  // The key first, like its deletion.
  const key = await lockKeyIncludingPurged(tx, by.organizationId, found.key_id);
  const claim = await lockSecretClaim(tx, found.id);
  if (key.deleted_at !== null || !isOpen(work, claim, found.code_hash, now)) throw claimGone();
  if (await isEndRecorded(tx, claim)) throw claimGone();
  await markEnded(tx, claim.id, { at: now, reason: 'redeemed', redeemedFrom });
  record(work, {
    action: 'key.claimed',
    keyId: key.id,
    partnerId: key.partner_id,
    details: { claimId: claim.id },
  });
  const organization = await getOrganization(tx, by.organizationId);
  const partner = key.partner_id && (await getPartner(tx, by.organizationId, key.partner_id));
  return { claim, key, organizationName: organization.name, partnerEmail: partner ? partner.email : null };
}

/** Whether a row is a pending claim with this code that was written with the keyring. */
export function isOpen(
  { keyring }: Pick<Work, 'keyring'>,
  claim: SecretClaim | undefined,
  codeHash: Buffer,
  now: Date,
): claim is OpenClaim {
  // Only 256 random bits have this hash, so the comparison may take variable time.
  if (claim?.code_hash?.equals(codeHash) !== true || statusOf(claim, now) !== 'pending') return false;
  // A row under a lost entry counts as authentic, but cannot be unsealed.
  if (claim.sealed_keyring_id === null || keyring.get(claim.sealed_keyring_id) === undefined) return false;
  return isAuthenticClaim(keyring, claim);
}
