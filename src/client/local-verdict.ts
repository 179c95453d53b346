import type { KnownKey } from './known-keys.ts';
import type { RateLimitState, Verdict } from './verdict.ts';

/** For what cannot be a key. */
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

/** Of both limits the one with the least left, as Latchkey would tell it. */
export function limitOf({ ownerLimit, keyLimit }: KnownKey, nowMs: number): RateLimitState | null {
  const [owner, key] = [ownerLimit.state('owner', nowMs), keyLimit.state('key', nowMs)];
  if (owner === undefined || key === undefined) return owner ?? key ?? null;
  return key.remaining <= owner.remaining ? key : owner;
}

/** Written out: this is on every request's path, and copying by a spread takes longer. */
export function verdictOf(facts: Verdict, rateLimit: RateLimitState | null): Verdict {
  return {
    valid: true,
    code: 'valid',
    keyId: facts.keyId,
    organizationId: facts.organizationId,
    partnerId: facts.partnerId,
    partnerEmail: facts.partnerEmail,
    permission: facts.permission,
    name: facts.name,
    metadata: facts.metadata,
    expiresAt: facts.expiresAt,
    dependsOnIp: facts.dependsOnIp,
    rateLimit,
  };
}
