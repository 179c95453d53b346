import type { Access, Permission } from '../core/permissions.ts';
import { clientAddress } from '../lib/ip-address.ts';

/** What Latchkey says of a key. A test holds this to the shape in the OpenAPI document. */
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
  /** 0 to 1,000, 1 where nothing is said: how much this counts. 0 asks without counting. */
  cost?: number;
}

/** The key with which a request was let in. Requests with the same key share it, and it is frozen. */
export interface ApiKey {
  /** `key_…` */
  readonly id: string;
  readonly organizationId: string;
  /** Null for the organization's own keys. */
  readonly partnerId: string | null;
  readonly partnerEmail: string | null;
  readonly permission: Permission;
  readonly name: string | null;
  /** What the organization keeps about the key. */
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly expiresAt: string | null;
}

/** @throws LatchkeyUnavailable for an answer that does not tell whose key it is */
export function apiKeyIn(verdict: Verdict): ApiKey {
  const { keyId, organizationId, partnerId, partnerEmail, permission, name, metadata, expiresAt } = verdict;
  if (keyId === null || organizationId === null || permission === null || metadata === null) {
    throw new LatchkeyUnavailable('Latchkey said that a key is good and not which one.');
  }
  deepFreeze(metadata);
  return Object.freeze({
    id: keyId,
    organizationId,
    partnerId,
    partnerEmail,
    permission,
    name,
    metadata,
    expiresAt,
  });
}

function deepFreeze(value: unknown): void {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return;
  Object.freeze(value);
  for (const member of Object.values(value)) deepFreeze(member);
}

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
