import { clientAddress } from '../lib/ip-address.ts';

/** What a request wants to do. */
export type Access = 'read' | 'write';

/** What a key carries. */
export type Permission = Access | 'read_write';

/** What Latchkey says of a key. A test compares this with the shape in the OpenAPI document. */
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
  /** This and what follows is null where code is malformed or not_found. */
  keyId: string | null;
  organizationId: string | null;
  /** Null for the organization's own keys. */
  partnerId: string | null;
  partnerEmail: string | null;
  permission: Permission | null;
  name: string | null;
  metadata: Record<string, unknown> | null;
  expiresAt: string | null;
  /** Whether the key has allowedIps, so that this holds for no other address. */
  dependsOnIp: boolean | null;
  /** Of the limit that has the least left; null where something else refused the key. */
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
  /** Exactly as the client presented it. */
  key: string;
  permission: Access;
  /** The client's address; a key with allowedIps is refused without it. */
  ip?: string;
  /** 0 to 1,000, 1 by default: how much this counts. 0 asks without counting. */
  cost?: number;
}

/** For a text that cannot be a key. */
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

/** The client's address as Latchkey reads it. Undefined: a key with allowedIps is refused, others do not depend on it. */
export function addressOf({ ip }: Question): string | undefined {
  return clientAddress(ip);
}

/** A use costs more than a limit of the key lets through in a whole window: waiting does not help. */
export class CostExceedsLimit extends Error {
  override readonly name = 'CostExceedsLimit';
}

/** Latchkey did not answer, and nothing that is known says whether this key is good. */
export class LatchkeyUnavailable extends Error {
  override readonly name = 'LatchkeyUnavailable';
}
