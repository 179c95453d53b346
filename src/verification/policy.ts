import { type Access, type Permission, permits } from '../domain/permissions.ts';
import { isWithin, type Networks, plainAddress, toNetworks } from '../lib/ip-address.ts';

/** The results of a verification. */
export const verdictCodes = [
  'valid',
  'malformed',
  'not_found',
  'deleted',
  'suspended',
  'partner_suspended',
  'expired',
  'ip_not_allowed',
  'insufficient_permission',
  'insufficient_scope',
  'rate_limited',
] as const;

export type VerdictCode = (typeof verdictCodes)[number];

/** The part of a key that `decide` needs. */
export interface DecidedKey {
  permission: Permission;
  expires_at: Date | null;
  allowed_ips: readonly string[];
  scopes: readonly string[];
  suspended_at: Date | null;
  partner_suspended_at: Date | null;
  deleted_at: Date | null;
}

/** What the client is about to do with a key. */
export interface RequestedUse {
  permission: Access;
  /** The client's address as the backend or a proxy gave it, in any form that `clientAddress` reads. */
  ip?: string | null | undefined;
  /** All of them must be on the key. */
  scopes?: readonly string[] | undefined;
}

/** Decides about a key whose secret is correct. The first rule that rejects it determines the code. */
export function decide(key: DecidedKey, requested: RequestedUse, now: Date): VerdictCode {
  if (key.deleted_at !== null) return 'deleted';
  if (key.suspended_at !== null) return 'suspended';
  if (key.partner_suspended_at !== null) return 'partner_suspended';
  if (key.expires_at !== null && key.expires_at <= now) return 'expired';
  if (!isAllowedAddress(key.allowed_ips, requested.ip)) return 'ip_not_allowed';
  if (!permits(key.permission, requested.permission)) return 'insufficient_permission';
  if (requested.scopes?.every((scope) => key.scopes.includes(scope)) === false) return 'insufficient_scope';
  return 'valid';
}

/** Parsed networks by list, because parsing is the most expensive part of a verification. */
const networksOf = new WeakMap<readonly string[], Networks>();

/** A key with a list requires a known address on that list. IPv4 in IPv6 (`::ffff:…`) counts as IPv4. */
export function isAllowedAddress(allowed: readonly string[], ip: RequestedUse['ip']): boolean {
  if (allowed.length === 0) return true;
  const address = plainAddress(ip);
  if (address === undefined) return false;
  const known = networksOf.get(allowed) ?? toNetworks(allowed);
  networksOf.set(allowed, known);
  return isWithin(known, address);
}
