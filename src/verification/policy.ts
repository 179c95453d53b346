import { type Access, type Permission, permits } from '../domain/permissions.ts';
import { isWithin, type Networks, plainAddress, toNetworks } from '../lib/ip-address.ts';

/** What a verification can say of a key, each with its rule in `decide`. */
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
  'rate_limited',
] as const;

export type VerdictCode = (typeof verdictCodes)[number];

export interface DecidedKey {
  permission: Permission;
  expires_at: Date | null;
  allowed_ips: readonly string[];
  suspended_at: Date | null;
  partner_suspended_at: Date | null;
  deleted_at: Date | null;
}

export interface Wanted {
  permission: Access;
  /** The client's address as the backend or a proxy gave it, in any of the forms that `clientAddress` reads. */
  ip?: string | null | undefined;
}

/** What decides about a key whose secret is right: the first rule that refuses is the answer. */
export function decide(key: DecidedKey, wanted: Wanted, now: Date): VerdictCode {
  if (key.deleted_at !== null) return 'deleted';
  if (key.suspended_at !== null) return 'suspended';
  if (key.partner_suspended_at !== null) return 'partner_suspended';
  if (key.expires_at !== null && key.expires_at <= now) return 'expired';
  if (!isAllowed(key.allowed_ips, wanted.ip)) return 'ip_not_allowed';
  if (!permits(key.permission, wanted.permission)) return 'insufficient_permission';
  return 'valid';
}

/** Networks by the list that they were made from: making them takes longer than all the rest of a verification. */
const networksOf = new WeakMap<readonly string[], Networks>();

/** A key with a list is good only where the address is known and on it. IPv4 in IPv6 (`::ffff:…`) counts as IPv4. */
function isAllowed(allowed: readonly string[], ip: Wanted['ip']): boolean {
  if (allowed.length === 0) return true;
  const address = plainAddress(ip);
  if (address === undefined) return false;
  const known = networksOf.get(allowed) ?? toNetworks(allowed);
  networksOf.set(allowed, known);
  return isWithin(known, address);
}
