import type { Selectable } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import { isAuthentic, type MacColumns, type MacParts, macOf } from '../crypto/mac.ts';
import type { AccessTokensTable } from '../database/tables/access-tokens.ts';
import type { ApiKeysTable } from '../database/tables/api-keys.ts';
import type { ClaimsTable } from '../database/tables/claims.ts';
import { canonicalJson } from '../domain/canonical-json.ts';

// The columns that the MAC of a credential's or claim's row covers. Suspension and ordinary deletion are not among them: the
// history contains those.

export const keyMacColumns = [
  'id',
  'organization_id',
  'partner_id',
  'permission',
  'origin',
  'expires_at',
  'allowed_ips',
  'scopes',
  'rate_limit_requests',
  'rate_limit_window_seconds',
  'limit_bucket_id',
  'delete_reason',
  'tag',
  'tag_keyring_id',
  'argon2id_hash',
] as const;

export type MacCoveredKey = Pick<Selectable<ApiKeysTable>, (typeof keyMacColumns)[number]>;

const tokenMacColumns = [
  'id',
  'organization_id',
  'role',
  'scopes',
  'name',
  'email',
  'creator_chain',
  'expires_at',
  'deleted_at',
  'tag',
  'tag_keyring_id',
  'argon2id_hash',
] as const;

export type MacCoveredToken = Pick<Selectable<AccessTokensTable>, (typeof tokenMacColumns)[number]>;

export const claimMacColumns = [
  'id',
  'organization_id',
  'partner_id',
  'key_id',
  'expires_at',
  'code_hash',
  'sealed',
  'sealed_keyring_id',
] as const;

export type MacCoveredClaim = Pick<Selectable<ClaimsTable>, (typeof claimMacColumns)[number]>;

type StoredMac = { [Column in keyof MacColumns]: MacColumns[Column] | null };

export function keyMac(keyring: Keyring, key: MacCoveredKey): MacColumns {
  return macOf(keyring.primary, keyParts(key));
}

export function isAuthenticKey(keyring: Keyring, key: MacCoveredKey & StoredMac): boolean {
  return isAuthentic(keyring, key, keyParts(key));
}

export function tokenMac(keyring: Keyring, token: MacCoveredToken): MacColumns {
  return macOf(keyring.primary, tokenParts(token));
}

export function isAuthenticToken(keyring: Keyring, token: MacCoveredToken & StoredMac): boolean {
  return isAuthentic(keyring, token, tokenParts(token));
}

export function claimMac(keyring: Keyring, claim: MacCoveredClaim): MacColumns {
  return macOf(keyring.primary, claimParts(claim));
}

export function isAuthenticClaim(keyring: Keyring, claim: MacCoveredClaim & StoredMac): boolean {
  return isAuthentic(keyring, claim, claimParts(claim));
}

function keyParts(key: MacCoveredKey): MacParts {
  return [
    'api_key',
    key.id,
    key.organization_id,
    key.partner_id,
    key.permission,
    key.origin,
    timeOf(key.expires_at),
    key.allowed_ips,
    key.scopes,
    key.rate_limit_requests,
    key.rate_limit_window_seconds,
    key.limit_bucket_id,
    key.delete_reason === 'compromised',
    ...tagParts(key),
  ];
}

function tokenParts(token: MacCoveredToken): MacParts {
  return [
    'access_token',
    token.id,
    token.organization_id,
    token.role,
    token.scopes,
    token.name,
    token.email,
    // Postgres returns the members of a JSON object in another order than they were written.
    canonicalJson(token.creator_chain),
    timeOf(token.expires_at),
    timeOf(token.deleted_at),
    ...tagParts(token),
  ];
}

function claimParts(claim: MacCoveredClaim): MacParts {
  return [
    'claim',
    claim.id,
    claim.organization_id,
    claim.partner_id,
    claim.key_id,
    timeOf(claim.expires_at),
    claim.code_hash?.toString('base64') ?? null,
    claim.sealed?.toString('base64') ?? null,
    claim.sealed_keyring_id,
  ];
}

/** As text, because JSON would write `infinity` like a missing time. */
function timeOf(time: Date | null): string | null {
  return time === null ? null : String(Number(time));
}

function tagParts({
  tag,
  tag_keyring_id,
  argon2id_hash,
}: Pick<MacCoveredKey, 'tag' | 'tag_keyring_id' | 'argon2id_hash'>) {
  return [tag?.toString('base64') ?? null, tag_keyring_id, argon2id_hash];
}
