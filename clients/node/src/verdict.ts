import { clientAddress } from '../../../src/lib/ip-address.ts';
import type { Access, Verdict } from './api.ts';

export type { Access, LimitCount as RateLimitState, Permission, Verdict } from './api.ts';

export interface Question {
  /** The key exactly as the client sent it. */
  key: string;
  permission: Access;
  /** All of them must be on the key. */
  scopes?: readonly string[];
  /** The client's address. Without it, a key with allowedIps is rejected. */
  ip?: string;
  /** 0 to 1,000, default 1: how much this use counts. 0 asks without counting. */
  cost?: number;
}

/** What a client reports to its owner. No event has a key or the token. */
export type ClientEvent =
  /** `memory`: cached; `latchkey`: Latchkey was asked; `outage`: cached, while Latchkey does not answer. */
  | { type: 'verified'; code: Verdict['code']; source: 'memory' | 'latchkey' | 'outage' }
  /** A verification ended with `LatchkeyUnavailable`. */
  | { type: 'unavailable'; reason: string }
  /** Cached answers begin to be used. */
  | { type: 'live' }
  /** Cached answers are no longer used; not by `close`. */
  | { type: 'not_live'; reason: string }
  /** Calls to Latchkey fail, for example for a wrong url or token: at once, and then once a minute while it lasts. */
  | { type: 'trouble'; reason: string };

/** The verdict about a text that cannot be a key. */
export const malformed: Verdict = {
  valid: false,
  code: 'malformed',
  keyId: null,
  organizationId: null,
  partnerId: null,
  partnerExternalId: null,
  partnerEmail: null,
  permission: null,
  scopes: null,
  name: null,
  metadata: null,
  expiresAt: null,
  dependsOnIp: null,
  rateLimit: null,
};

/** RFC 6749 section 3.3, and the length that Latchkey accepts. */
const scopeToken = /^[\x21\x23-\x5b\x5d-\x7e]{1,100}$/;
const mostScopes = 50;

/**
 * Rejects what Latchkey would reject, so that cached keys follow the same rule as others.
 * @throws RangeError
 */
export function requireScopes(scopes: unknown): void {
  if (scopes === undefined) return;
  if (
    Array.isArray(scopes) &&
    scopes.length <= mostScopes &&
    scopes.every(
      (scope, index) => typeof scope === 'string' && scopeToken.test(scope) && scopes.indexOf(scope) === index,
    )
  ) {
    return;
  }
  throw new RangeError(
    `scopes must be a list of at most ${mostScopes} different scope tokens: 1 to 100 characters of printable ASCII without ` +
      'space, double quote and backslash',
  );
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
