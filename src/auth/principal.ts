import type { Actor } from '../core/actor.ts';
import type { AccessTokenId, KeyId, OrganizationId, PartnerId } from '../core/ids.ts';
import type { Access, Permission } from '../core/permissions.ts';
import type { ApiKeyRecord } from './store.ts';

/** Who calls, as the presented credential proves it. */
export type Principal = AccessTokenPrincipal | ApiKeyPrincipal;

export interface AccessTokenPrincipal {
  kind: 'access_token';
  role: 'operator' | 'admin' | 'verifier';
  id: AccessTokenId;
  /** Null for an operator, and for a verifier that serves all organizations. */
  organizationId: OrganizationId | null;
  name: string;
  email: string | null;
  scopes: Access[];
  expiresAt: Date | null;
  /** The organization in which this request acts: its own, or the one that `Latchkey-Organization` names. */
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
  /** What its use is counted by. */
  record: ApiKeyRecord;
}

export function actorOf(principal: AccessTokenPrincipal): Actor {
  return { type: principal.role, id: principal.id, name: principal.name, email: principal.email };
}
