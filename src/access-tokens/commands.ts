import { type MintedCredential, mintCredential, type TokenCrypto } from '../credentials/mint.ts';
import type { Secret } from '../crypto/secret.ts';
import { tokenKindOf } from '../crypto/token.ts';
import { stopCredential } from '../database/credential.ts';
import type { Work } from '../database/work.ts';
import { type CreatorChain, extendChain } from '../domain/actor.ts';
import { Problem } from '../domain/errors.ts';
import { type AccessTokenId, isId, newId } from '../domain/ids.ts';
import { type Role, sortTokenScopes, type TokenScope } from '../domain/permissions.ts';
import { record } from '../history/record.ts';
import { requireAnotherAdmin, requirePermitted } from './policy.ts';
import { type AccessToken, insertAccessToken, lockAccessToken, lockWriters, markAccessTokenDeleted } from './store.ts';

export interface NewAccessToken {
  role: Role;
  name: string;
  email: string | null;
  scopes: TokenScope[];
  expiresAt: Date | null;
}

export interface CreatedAccessToken {
  accessToken: AccessToken;
  plaintext: Secret;
}

/** A new access token that is not stored yet. */
export interface MintedAccessToken extends MintedCredential {
  id: AccessTokenId;
}

/** Runs argon2id once. @throws Problem `overloaded` */
export async function mintAccessToken(crypto: TokenCrypto, role: Role): Promise<MintedAccessToken> {
  const id = newId('token');
  return { id, ...(await mintCredential(crypto, tokenKindOf[role], id)) };
}

/** What the creating token passes on. */
export interface TokenCreator {
  /** The scopes of the creator. A new token can only have these. */
  scopes: readonly TokenScope[];
  creatorChain: CreatorChain;
}

/**
 * Creates an access token.
 * @param minted made before the transaction, so that no lock is held during hashing
 * @throws Problem `validation_failed`, `forbidden`
 */
export async function createAccessToken(
  work: Work,
  minted: MintedAccessToken,
  creator: TokenCreator,
  given: NewAccessToken,
): Promise<CreatedAccessToken> {
  const { organizationId, actor } = work.by;
  requirePermitted({ role: actor.type, scopes: creator.scopes }, given, organizationId, work.now);
  return {
    accessToken: await addAccessToken(work, minted, given, creator.creatorChain),
    plaintext: minted.plaintext,
  };
}

/**
 * Stores a minted token and records it, for the organization of `work` or for the installation.
 * @param creatorChain of the actor; empty for the bootstrap
 */
export async function addAccessToken(
  work: Work,
  { id, columns }: MintedAccessToken,
  given: NewAccessToken,
  creatorChain: CreatorChain = [],
): Promise<AccessToken> {
  const { role, name, email } = given;
  const scopes = sortTokenScopes(given.scopes);
  const accessToken = await insertAccessToken(work, {
    id,
    organization_id: work.by.organizationId,
    role,
    scopes,
    name,
    email,
    ...columns,
    created_at: work.now,
    created_by: work.by.actor,
    creator_chain: extendChain(creatorChain, work.by.actor),
    expires_at: given.expiresAt,
  });
  const expiresAt = given.expiresAt?.toISOString() ?? null;
  record(work, {
    action: 'access_token.created',
    details: { accessTokenId: id, role, name, email, scopes, expiresAt },
  });
  return accessToken;
}

/**
 * Deletes an access token. @throws Problem `not_found`, `already_deleted`, `forbidden` for an organization's last admin
 */
export async function deleteAccessToken(work: Work, id: string): Promise<AccessToken> {
  const { organizationId, actor } = work.by;
  if (isId('token', id)) await stopCredential(work.tx, id);
  const writers = organizationId === null ? [] : await lockWriters(work.tx, organizationId, work.now);
  const token = await lockAccessToken(work.tx, organizationId, id);
  if (token.deleted_at !== null) {
    throw new Problem('already_deleted', `Access token ${token.id} was deleted at ${token.deleted_at.toISOString()}.`);
  }
  requireAnotherAdmin(actor.type, token, writers);
  await markAccessTokenDeleted(work, token.id, work.now);
  const { role, name, email } = token;
  const details = { accessTokenId: token.id, role, name, email, deletedAt: work.now.toISOString() };
  record(work, { action: 'access_token.deleted', details });
  return { ...token, deleted_at: work.now };
}
