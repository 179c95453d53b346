import { clientAddress } from '../../../src/lib/ip-address.ts';

/** The access that a request needs. */
export type Access = 'read' | 'write';

/** The permission of a key. */
export type Permission = Access | 'read_write';

/** The verdict about a key. A test compares this type with the OpenAPI document. */
export interface Verdict {
  valid: boolean;
  code:
    | 'valid'
    | 'malformed'
    | 'not_found'
    | 'deleted'
    | 'suspended'
    | 'partner_suspended'
    | 'expired'
    | 'ip_not_allowed'
    | 'insufficient_permission'
    | 'rate_limited';
  /** This member and the following ones are null if code is malformed or not_found. */
  keyId: string | null;
  organizationId: string | null;
  /** Null for the organization's own keys. */
  partnerId: string | null;
  partnerEmail: string | null;
  permission: Permission | null;
  name: string | null;
  metadata: Record<string, unknown> | null;
  expiresAt: string | null;
  /** Whether the key has allowedIps. Then the verdict is valid only for this address. */
  dependsOnIp: boolean | null;
  /** The limit with the least remaining; null if the key was rejected for another reason. */
  rateLimit: RateLimitState | null;
}

export interface RateLimitState {
  /** The owner's limit, or one of the key's own. */
  policy: 'owner' | 'key';
  limit: number;
  windowSeconds: number;
  remaining: number;
  resetSeconds: number;
}

export interface Question {
  /** The key exactly as the client sent it. */
  key: string;
  permission: Access;
  /** The client's address. Without it, a key with allowedIps is rejected. */
  ip?: string;
  /** 0 to 1,000, default 1: how much this use counts. 0 asks without counting. */
  cost?: number;
}

/** The verdict about a text that cannot be a key. */
export const malformed: Verdict = {
  valid: false,
  code: 'malformed',
  keyId: null,
  organizationId: null,
  partnerId: null,
  partnerEmail: null,
  permission: null,
  name: null,
  metadata: null,
  expiresAt: null,
  dependsOnIp: null,
  rateLimit: null,
};

/** GET, HEAD and OPTIONS read; all other methods write. */
export function permissionFor(method: string): Access {
  return method === 'GET' || method === 'HEAD' || method === 'OPTIONS' ? 'read' : 'write';
}

/**
 * The client's address as Latchkey reads it. Undefined: a key with allowedIps is rejected; others do not depend on it.
 */
export function addressOf({ ip }: Question): string | undefined {
  return clientAddress(ip);
}

/** A use costs more than a whole window of one of the key's limits, so waiting does not help. */
export class CostExceedsLimit extends Error {
  override readonly name = 'CostExceedsLimit';
}

/** Latchkey did not answer, and no cached answer is valid for this key. */
export class LatchkeyUnavailable extends Error {
  override readonly name = 'LatchkeyUnavailable';
}
