import { type Actor, type CreatorChain, creatorsOf, topmostAdminOf } from './actor.ts';
import type { AccessTokenId, KeyId, OrganizationId, PartnerId } from './ids.ts';
import type { Permission, Role, TokenScope } from './permissions.ts';

/** The authenticated identity of a caller. */
export type Principal = CallerPrincipal | ApiKeyPrincipal;

/** A principal with a role, from an access token of Latchkey or of the identity provider. */
export type CallerPrincipal = AccessTokenPrincipal | OidcPrincipal;

export interface AccessTokenPrincipal {
  kind: 'access_token';
  role: Role;
  id: AccessTokenId;
  /** Null for an operator, and for a verifier that serves all organizations. */
  organizationId: OrganizationId | null;
  name: string;
  email: string | null;
  scopes: TokenScope[];
  expiresAt: Date | null;
  /** Who created it. */
  creatorChain: CreatorChain;
  /** The organization of this request: the principal's own, or the one in `Latchkey-Organization`. */
  actsIn: OrganizationId | null;
}

/** A person authenticated by the company's identity provider. Never an operator. */
export interface OidcPrincipal {
  kind: 'oidc';
  role: 'admin';
  /** Issuer and subject, which identify the person in history and for limits, whatever token is used. */
  id: `${string}#${string}`;
  issuer: string;
  subject: string;
  organizationId: OrganizationId;
  name: string;
  email: string | null;
  scopes: TokenScope[];
  expiresAt: Date;
  actsIn: OrganizationId | null;
}

export interface ApiKeyPrincipal {
  kind: 'api_key';
  id: KeyId;
  organizationId: OrganizationId;
  partnerId: PartnerId | null;
  permission: Permission;
  name: string | null;
  expiresAt: Date | null;
  /** The addresses and networks from which the key may be used; empty: any. */
  allowedIps: readonly string[];
}

export function actorOf(principal: Principal): Actor {
  if (principal.kind === 'api_key') {
    return { type: 'api_key', id: principal.id, name: principal.name ?? principal.id, email: null };
  }
  const { role: type, id, name, email } = principal;
  if (principal.kind === 'access_token') return { type, id, name, email, ...creatorsOf(principal.creatorChain) };
  return { type, id, name, email, issuer: principal.issuer, subject: principal.subject };
}

/** The creators of the principal. A person of an identity provider has none. */
export function creatorChainOf(principal: CallerPrincipal): CreatorChain {
  return principal.kind === 'access_token' ? principal.creatorChain : [];
}

/**
 * The id under which endpoint limits count a caller: the topmost admin among the creators of its access token, so that
 * tokens which an admin creates for itself share one limit.
 */
export function limitSubjectOf(principal: Principal): string {
  if (principal.kind !== 'access_token') return principal.id;
  return topmostAdminOf(principal.creatorChain)?.id ?? principal.id;
}
