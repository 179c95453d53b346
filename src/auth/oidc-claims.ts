import type { JWTPayload } from 'jose';
import { isId, type OrganizationId } from '../core/ids.ts';
import type { Access } from '../core/permissions.ts';
import type { OidcSettings } from './oidc-settings.ts';

/** Whom a genuine token is about, in the words of this service. */
export interface Identity {
  subject: string;
  organizationId: OrganizationId;
  name: string;
  email: string | null;
  /** At least one. */
  scopes: Access[];
}

/** Longer ones are not what OpenID Connect allows (Core 1.0, section 2). */
const longestSubject = 255;

/** @returns the identity, or why there is none */
export function identityOf(payload: JWTPayload, settings: OidcSettings): Identity | string {
  const subject = payload.sub;
  if (typeof subject !== 'string' || subject.length > longestSubject || !/^[\x20-\x7e]+$/.test(subject)) {
    return 'The token has no subject of up to 255 ASCII characters.';
  }
  const organizationId = organizationOf(payload, settings.organization);
  if (organizationId === undefined) return 'The token names no organization, or none that is known here.';
  const scopes = scopesOf(payload, settings);
  if (scopes.length === 0) return 'The token has no role that gives anything here.';
  const name = shownText(claimOf(payload, settings.nameClaim), 200) ?? subject;
  return { subject, organizationId, name, email: emailOf(payload, settings), scopes };
}

/** One that the provider has not looked at is the person's own word, which history does not pass on. */
function emailOf(payload: JWTPayload, { emailClaim }: OidcSettings): string | null {
  if (payload['email_verified'] === false || payload['email_verified'] === 'false') return null;
  return shownText(claimOf(payload, emailClaim), 254) ?? null;
}

function organizationOf(payload: JWTPayload, by: OidcSettings['organization']): OrganizationId | undefined {
  if ('id' in by) return by.id;
  const found = claimOf(payload, by.claim);
  // Some providers make a list of it; of several nobody could say which is meant.
  const value = Array.isArray(found) && found.length === 1 ? found[0] : found;
  if (typeof value !== 'string') return undefined;
  if (by.ids !== undefined) return by.ids.get(value);
  return isId('org', value) ? value : undefined;
}

function scopesOf(payload: JWTPayload, { rolesClaim, readRoles, writeRoles }: OidcSettings): Access[] {
  const found = claimOf(payload, rolesClaim);
  const roles: unknown[] = typeof found === 'string' ? found.split(' ') : Array.isArray(found) ? found : [];
  const has = (giving: readonly string[]) => giving.some((role) => roles.includes(role));
  return [...(has(readRoles) ? (['read'] as const) : []), ...(has(writeRoles) ? (['write'] as const) : [])];
}

/** By its whole name, as `https://example.com/roles`; else by a path, as `realm_access.roles`. */
function claimOf(payload: JWTPayload, name: string): unknown {
  if (Object.hasOwn(payload, name)) return payload[name];
  let value: unknown = payload;
  for (const part of name.split('.')) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, part)) return undefined;
    value = (value as Record<string, unknown>)[part];
  }
  return value;
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what this takes out
const controlCharacters = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g;

/** As history can keep it: bounded, on one line, and well-formed. */
function shownText(value: unknown, most: number): string | undefined {
  if (typeof value !== 'string') return undefined;
  const text = value.toWellFormed().replaceAll(controlCharacters, ' ').trim().slice(0, most).toWellFormed();
  return text === '' ? undefined : text;
}
