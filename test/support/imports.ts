import { createHash, randomBytes } from 'node:crypto';

/** A token of another system. */
export function foreignToken(): string {
  return `acme_live_${randomBytes(18).toString('base64url')}`;
}

export function sha256Of(token: string): string {
  return createHash('sha256').update(token).digest('hex');
}

/** What must not be in a dump: each token, and its SHA-256 as hex and as the text of a bytea. */
export function tracesOf(token: string): string[] {
  return [token, Buffer.from(token).toString('hex'), sha256Of(token), Buffer.from(sha256Of(token)).toString('hex')];
}

/** A line of a file for `latchkey import`, with a new token. @param partner the number in its external id */
export function importLine(partner: number, permission: 'read' | 'write') {
  return { partnerExternalId: `customer-${partner}`, permission, plaintext: foreignToken() };
}
