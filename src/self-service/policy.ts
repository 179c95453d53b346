import { Problem } from '../domain/errors.ts';
import type { Permission } from '../domain/permissions.ts';
import { credentialExpired, credentialRejected } from '../verification/authenticate.ts';
import { type DecidedKey, decide, isAllowedAddress } from '../verification/policy.ts';

/** Rules of what the holder of a key may do with it, without a database. */

/** @throws Problem `self_service_disabled` */
export function requireSelfService(organization: { self_service: boolean }): void {
  if (organization.self_service) return;
  throw new Problem('self_service_disabled', 'The organization of this key does not allow self-service.');
}

/**
 * Only a key that could be used right now, from this address, can get a successor: a stolen key that was suspended or is
 * bound to other addresses gets none.
 * @param ip the holder's address
 * @throws Problem `unauthorized`, `token_expired`, `forbidden`
 */
export function requireMayRotateItself(key: DecidedKey & { permission: Permission }, ip: string, now: Date): void {
  const permission = key.permission === 'write' ? 'write' : 'read';
  switch (decide(key, { permission, ip }, now)) {
    case 'valid':
      return;
    case 'expired':
      throw credentialExpired(key.expires_at);
    case 'ip_not_allowed':
      throw addressForbidden(ip);
    default:
      throw credentialRejected();
  }
}

/**
 * A retry with an `Idempotency-Key` gets the new plaintext without another decision, so its address is checked before.
 * @throws Problem `forbidden`
 */
export function requireAllowedAddress({ allowedIps }: { allowedIps: readonly string[] }, ip: string): void {
  if (!isAllowedAddress(allowedIps, ip)) throw addressForbidden(ip);
}

function addressForbidden(ip: string): Problem {
  return new Problem('forbidden', `This key must not be used from ${ip}, so it cannot be rotated from there.`);
}

/** Revoking is always safe, so only a key that is deleted already cannot be revoked. @throws Problem `unauthorized` */
export function requireMayRevokeItself({ deleted_at }: Pick<DecidedKey, 'deleted_at'>): void {
  if (deleted_at !== null) throw credentialRejected();
}
