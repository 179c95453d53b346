import { unauthorized } from '../auth/credential.ts';
import type { AccessTokenPrincipal, ApiKeyPrincipal, Principal } from '../auth/principal.ts';
import type { Problem } from '../core/errors.ts';
import type { AccessTokenId, KeyId } from '../core/ids.ts';
import { Secret } from '../crypto/secret.ts';
import { fingerprintOf } from '../crypto/tag.ts';
import { parseToken, tokenKindOf } from '../crypto/token.ts';
import type { DatabaseClock } from '../db/clock.ts';
import type { Authenticator } from '../http/guard.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import type { AccessTokenRecord } from './record-store.ts';
import type { Records } from './records.ts';
import type { SecretCheck } from './secret-check.ts';

interface AuthenticatorOptions {
  records: Records;
  clock: DatabaseClock;
  prefix: string;
  checkKey: SecretCheck<ApiKeyRecord>;
  checkAccessToken: SecretCheck<AccessTokenRecord>;
}

export function createAuthenticator({ records, clock, prefix, ...check }: AuthenticatorOptions): Authenticator {
  function recall(text: string): AccessTokenPrincipal | undefined {
    const record = records.accessTokens.recall(fingerprintOf(new Secret(text)));
    return record === undefined ? undefined : admit(record);
  }

  function admit(record: AccessTokenRecord): AccessTokenPrincipal {
    if (record.deleted_at !== null) throw refused();
    requireUnexpired(record, clock);
    return accessTokenPrincipal(record);
  }

  async function authenticate(text: string): Promise<Principal> {
    const token = new Secret(text);
    const parsed = parseToken(text, prefix);
    if (parsed === undefined) {
      const detail = 'The credential is not a whole token: form or checksum is wrong.';
      throw unauthorized('token_malformed', detail, 'invalid_token');
    }
    if (parsed.kind === 'k') {
      const record = await records.apiKeys.get(`key_${parsed.idSuffix}` as KeyId);
      const matches = await check.checkKey(record, token);
      if (record === undefined || !matches || isDead(record)) throw refused();
      requireUnexpired(record, clock);
      return apiKeyPrincipal(record);
    }
    const record = await records.accessTokens.get(`token_${parsed.idSuffix}` as AccessTokenId);
    const matches = await check.checkAccessToken(record, token);
    // The letter is part of the token: a row with another role was not made for it.
    if (record === undefined || !matches || tokenKindOf[record.role] !== parsed.kind) throw refused();
    return admit(record);
  }

  return { authenticate, recall };
}

function isDead(key: ApiKeyRecord): boolean {
  return key.deleted_at !== null || key.suspended_at !== null || key.partner_suspended_at !== null;
}

/** One answer for unknown, wrong and revoked, so that it does not tell which ids exist. */
function refused(): Problem {
  return unauthorized('unauthorized', 'The credential is unknown, wrong or revoked.', 'invalid_token');
}

function requireUnexpired(record: { expires_at: Date | null }, clock: DatabaseClock): void {
  if (record.expires_at === null || record.expires_at.getTime() > clock.nowMs()) return;
  const detail = `The credential expired at ${record.expires_at.toISOString()}.`;
  throw unauthorized('token_expired', detail, 'invalid_token');
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
