import type { Selectable } from 'kysely';
import { sql } from 'kysely';
import { isAuthenticToken, tokenMac } from '../credentials/record-mac.ts';
import { type Db, type Tx, writeTransaction } from '../database/client.ts';
import type { AccessTokensTable } from '../database/tables/access-tokens.ts';
import type { Work } from '../database/work.ts';
import { requireFound } from '../domain/errors.ts';
import type { AccessTokenId, OrganizationId } from '../domain/ids.ts';

/** An access token without its tag and hash. */
export interface AccessToken
  extends Omit<Selectable<AccessTokensTable>, 'tag' | 'tag_keyring_id' | 'argon2id_hash' | 'mac' | 'mac_keyring_id'> {
  last_used_at: Date | null;
}

const columns = [
  'id',
  'organization_id',
  'role',
  'scopes',
  'name',
  'email',
  'last_four',
  'created_at',
  'created_by',
  'creator_chain',
  'expires_at',
  'deleted_at',
] as const;

const lastUsedAt = sql<Date | null>`(
  select last_used_at from access_token_uses where access_token_id = access_tokens.id)`.as('last_used_at');

/** Live access tokens, newest first, up to `limit + 1`. A null organization is the installation. */
export async function listAccessTokens(
  db: Db,
  organizationId: OrganizationId | null,
  page: { limit: number; before: AccessTokenId | undefined },
): Promise<AccessToken[]> {
  let query = db
    .selectFrom('access_tokens')
    .select([...columns, lastUsedAt])
    .where('organization_id', organizationId === null ? 'is' : '=', organizationId)
    .where('deleted_at', 'is', null)
    .orderBy('id', 'desc')
    .limit(page.limit + 1);
  if (page.before !== undefined) query = query.where('id', '<', page.before);
  return query.execute();
}

/** @throws Problem `not_found`, also for another organization's token */
export async function getAccessToken(db: Db, organizationId: OrganizationId | null, id: string): Promise<AccessToken> {
  return requireFound(
    await selectAccessToken(db, organizationId, id).executeTakeFirst(),
    'access token in this organization',
  );
}

/** @throws Problem `not_found`, also for another organization's token */
export async function lockAccessToken(tx: Tx, organizationId: OrganizationId | null, id: string): Promise<AccessToken> {
  return requireFound(
    await selectAccessToken(tx, organizationId, id).forNoKeyUpdate().executeTakeFirst(),
    'access token in this organization',
  );
}

/** Locks the live tokens of an organization's admins with the scope write, in id order to avoid deadlocks. */
export async function lockWriters(tx: Tx, organizationId: OrganizationId, now: Date): Promise<{ id: AccessTokenId }[]> {
  return tx
    .selectFrom('access_tokens')
    .select('id')
    .where('organization_id', '=', organizationId)
    .where('role', '=', 'admin')
    .where(sql<boolean>`'write' = any(scopes)`)
    .where('deleted_at', 'is', null)
    .where((where) => where.or([where('expires_at', 'is', null), where('expires_at', '>', now)]))
    .orderBy('id')
    .forNoKeyUpdate()
    .execute();
}

function selectAccessToken(db: Db, organizationId: OrganizationId | null, id: string) {
  return db
    .selectFrom('access_tokens')
    .select([...columns, lastUsedAt])
    .where('organization_id', organizationId === null ? 'is' : '=', organizationId)
    .where('id', '=', id as AccessTokenId);
}

export async function insertAccessToken(
  { tx, keyring }: Pick<Work, 'tx' | 'keyring'>,
  token: Omit<Selectable<AccessTokensTable>, 'deleted_at' | 'mac' | 'mac_keyring_id'>,
): Promise<AccessToken> {
  const mac = tokenMac(keyring, { ...token, deleted_at: null });
  return tx
    .insertInto('access_tokens')
    .values({
      ...token,
      ...mac,
      created_by: JSON.stringify(token.created_by),
      creator_chain: JSON.stringify(token.creator_chain),
    })
    .returning([...columns, sql<null>`null`.as('last_used_at')])
    .executeTakeFirstOrThrow();
}

/** The token must be locked. */
export async function markAccessTokenDeleted(
  { tx, keyring }: Pick<Work, 'tx' | 'keyring'>,
  id: AccessTokenId,
  deletedAt: Date,
): Promise<void> {
  const token = await tx.selectFrom('access_tokens').selectAll().where('id', '=', id).executeTakeFirstOrThrow();
  const deleted = { deleted_at: deletedAt };
  const mac = isAuthenticToken(keyring, token) ? tokenMac(keyring, { ...token, ...deleted }) : {};
  await tx
    .updateTable('access_tokens')
    .set({ ...deleted, ...mac })
    .where('id', '=', id)
    .execute();
}

/** The last use of an access token in a period. */
export interface TokenUse {
  id: AccessTokenId;
  /** Milliseconds since 1970. */
  lastUsedMs: number;
}

/** Notes the last uses. Rows are written in the order of the ids, so that two replicas do not deadlock. */
export async function addTokenUses(db: Db, uses: readonly TokenUse[]): Promise<void> {
  const insert = sql`
    insert into access_token_uses as known (access_token_id, last_used_at)
    select id, to_timestamp(last_used_ms / 1000.0)
    from unnest(${uses.map(({ id }) => id)}::text[], ${uses.map(({ lastUsedMs }) => lastUsedMs)}::bigint[])
      as used (id, last_used_ms)
    order by id collate "C"
    on conflict (access_token_id) do update set last_used_at = greatest(known.last_used_at, excluded.last_used_at)`;
  await writeTransaction(db).execute((tx) => insert.execute(tx));
}
