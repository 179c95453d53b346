import type { JWTPayload } from 'jose';
import type { SecretText } from '../crypto/secret-text.ts';
import { isId, type OrganizationId } from '../domain/ids.ts';
import { type TokenScope, tokenScopes } from '../domain/permissions.ts';
import { withoutUnreadable } from '../lib/readable-text.ts';
import type { OidcSettings } from './settings.ts';

/** The person of a genuine token, with organization and scopes. */
export interface Identity {
  subject: string;
  organizationId: OrganizationId;
  name: string;
  email: string | null;
  /** At least one. */
  scopes: TokenScope[];
}

/** The maximum length in OpenID Connect (Core 1.0, section 2). */
const longestSubject = 255;

/** @returns the identity, or why the token has none */
export function identityOf(payload: JWTPayload, settings: OidcSettings, secrets: SecretText): Identity | string {
  const subject = payload.sub;
  if (typeof subject !== 'string' || subject.length > longestSubject || !/^[\x20-\x7e]+$/.test(subject)) {
    return 'The token has no subject of up to 255 ASCII characters.';
  }
  if (secrets.isIn(subject)) return 'The subject of the token contains a Latchkey token.';
  const organizationId = organizationOf(payload, settings.organization);
  if (organizationId === undefined) return 'The token names no organization, or an unknown one.';
  const scopes = scopesOf(payload, settings);
  if (scopes.length === 0) return 'The token has no role that gives access.';
  const shown = (claim: unknown, most: number) => storableText(claim, most, secrets);
  const name = shown(claimOf(payload, settings.nameClaim), 200) ?? subject;
  const email = isUnverified(payload) ? undefined : shown(claimOf(payload, settings.emailClaim), 254);
  return { subject, organizationId, name, email: email ?? null, scopes };
}

/** An address that the provider has not verified is only the person's claim, so history does not contain it. */
function isUnverified(payload: JWTPayload): boolean {
  return payload['email_verified'] === false || payload['email_verified'] === 'false';
}

function organizationOf(payload: JWTPayload, by: OidcSettings['organization']): OrganizationId | undefined {
  if ('id' in by) return by.id;
  const found = claimOf(payload, by.claim);
  // Some providers send a list. With several values it is not clear which one is meant.
  const value = Array.isArray(found) && found.length === 1 ? found[0] : found;
  if (typeof value !== 'string') return undefined;
  if (by.ids !== undefined) return by.ids.get(value);
  return isId('org', value) ? value : undefined;
}

function scopesOf(payload: JWTPayload, { rolesClaim, rolesOf }: OidcSettings): TokenScope[] {
  const found = claimOf(payload, rolesClaim);
  const roles: unknown[] = typeof found === 'string' ? found.split(' ') : Array.isArray(found) ? found : [];
  return tokenScopes.filter((scope) => rolesOf[scope].some((role) => roles.includes(role)));
}

/**
 * Finds a claim by its whole name, such as `https://example.com/roles`, otherwise by a path, such as
 * `realm_access.roles`, whose parts may contain dots.
 */
export function claimOf(within: unknown, name: string): unknown {
  if (typeof within !== 'object' || within === null) return undefined;
  const members = within as Record<string, unknown>;
  if (Object.hasOwn(members, name)) return members[name];
  for (let dot = name.lastIndexOf('.'); dot > 0; dot = name.lastIndexOf('.', dot - 1)) {
    const part = name.slice(0, dot);
    const found = Object.hasOwn(members, part) ? claimOf(members[part], name.slice(dot + 1)) : undefined;
    if (found !== undefined) return found;
  }
  return undefined;
}

/**
 * A text in a form that history can store: limited, on one line, well-formed, without invisible characters and tokens.
 */
function storableText(value: unknown, most: number, { redact }: SecretText): string | undefined {
  if (typeof value !== 'string') return undefined;
  const visible = withoutUnreadable(redact(value).toWellFormed().normalize('NFC'));
  const text = visible.trim().slice(0, most).toWellFormed();
  return text === '' ? undefined : text;
}
