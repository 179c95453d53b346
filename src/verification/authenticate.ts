import { unauthorized } from '../credentials/presented.ts';
import type { DatabaseClock } from '../database/clock.ts';
import type { Problem } from '../domain/errors.ts';
import type { AccessTokenPrincipal, ApiKeyPrincipal } from '../domain/principal.ts';
import type { KeyObstacle } from '../http/access.ts';
import type { Authenticator } from '../http/guard.ts';
import { andThen } from '../lib/maybe-promise.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import type { Credentials, LookupResult } from './credentials.ts';
import type { AccessTokenRecord } from './record-store.ts';
import type { TokenUses } from './token-uses.ts';

/** Authenticates API keys and access tokens from memory. */
export function createAuthenticator(
  credentials: Credentials,
  clock: DatabaseClock,
  tokenUses: Pick<TokenUses, 'note'>,
): Authenticator {
  function admitKey(found: LookupResult<ApiKeyRecord>, admits: readonly KeyObstacle[]): ApiKeyPrincipal {
    const key = requireFound(found);
    const isSuspended = key.suspended_at !== null || key.partner_suspended_at !== null;
    if (key.deleted_at !== null && !admits.includes('deleted')) throw credentialRejected();
    if (isSuspended && !admits.includes('suspended')) throw credentialRejected();
    if (!admits.includes('expired')) requireUnexpired(key, clock);
    return apiKeyPrincipal(key);
  }

  function admitAccessToken(found: LookupResult<AccessTokenRecord>): AccessTokenPrincipal {
    const token = requireFound(found);
    if (token.deleted_at !== null) throw credentialRejected();
    requireUnexpired(token, clock);
    tokenUses.note(token.id);
    return accessTokenPrincipal(token);
  }

  return {
    authenticate: (token, admits = []) =>
      credentials.isAccessToken(token)
        ? andThen(credentials.findAccessToken(token), admitAccessToken)
        : andThen(credentials.findApiKey(token, { callerOrganizationId: null, fresh: false }), (found) =>
            admitKey(found, admits),
          ),
  };
}

function requireFound<Cached>(found: LookupResult<Cached>): Cached {
  if (found === 'malformed') {
    const detail =
      'The credential is not a complete token: its form or checksum is wrong. Check that it was copied in full.';
    throw unauthorized('token_malformed', detail, 'invalid_token');
  }
  if (found === undefined) throw credentialRejected();
  return found as Cached;
}

/** Unknown, wrong and revoked credentials get the same reply, so that it does not reveal which ids exist. */
export function credentialRejected(): Problem {
  return unauthorized('unauthorized', 'The credential is unknown, wrong or revoked.', 'invalid_token');
}

function requireUnexpired(record: { expires_at: Date | null }, clock: DatabaseClock): void {
  if (record.expires_at === null || record.expires_at.getTime() > clock.nowMs()) return;
  throw credentialExpired(record.expires_at);
}

export function credentialExpired(at: Date | null): Problem {
  const detail = `The credential expired at ${at?.toISOString()}.`;
  return unauthorized('token_expired', detail, 'invalid_token');
}

function apiKeyPrincipal(record: ApiKeyRecord): ApiKeyPrincipal {
  return {
    kind: 'api_key',
    id: record.id,
    organizationId: record.organization_id,
    partnerId: record.partner_id,
    permission: record.permission,
    name: record.name,
    expiresAt: record.expires_at,
    allowedIps: record.allowed_ips,
  };
}

function accessTokenPrincipal(record: AccessTokenRecord): AccessTokenPrincipal {
  return {
    kind: 'access_token',
    role: record.role,
    id: record.id,
    organizationId: record.organization_id,
    name: record.name,
    email: record.email,
    scopes: record.scopes,
    expiresAt: record.expires_at,
    creatorChain: record.creator_chain,
    actsIn: record.organization_id,
  };
}
