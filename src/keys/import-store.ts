import { sql } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import { importedTagOf } from '../crypto/tag.ts';
import type { Db, Tx } from '../database/client.ts';
import type { DeleteReason } from '../database/tables/api-keys.ts';
import type { KeyId, OrganizationId } from '../domain/ids.ts';

/** Queries about imported keys. */

/**
 * Serializes the imports of the whole installation until the transaction ends. The unique index alone would not keep
 * replicas whose primary keyring entries differ from importing one token twice.
 */
export async function lockImports(tx: Tx): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtext('latchkey import'), 0)`.execute(tx);
}

/** A key that has a token. */
export interface TokenHolder {
  /** The SHA-256 of the token, in hex. */
  digest: string;
  id: KeyId;
  organization_id: OrganizationId;
  delete_reason: DeleteReason | null;
}

/** The keys, of any organization, with these tokens under any entry of the keyring. @param digests in hex */
export async function findTokenHolders(db: Db, keyring: Keyring, digests: readonly string[]): Promise<TokenHolder[]> {
  const digestOfTag = new Map<string, string>();
  for (const entry of keyring.entries) {
    for (const digest of digests) {
      digestOfTag.set(importedTagOf(entry, Buffer.from(digest, 'hex')).toString('latin1'), digest);
    }
  }
  const tags = [...digestOfTag.keys()].map((tag) => Buffer.from(tag, 'latin1'));
  const rows = await db
    .selectFrom('api_keys')
    .select(['id', 'organization_id', 'delete_reason', 'tag'])
    .where('origin', '=', 'imported')
    .where('tag', 'is not', null)
    .where('tag', '=', sql<Buffer>`any(${tags}::bytea[])`)
    .$narrowType<{ tag: Buffer }>()
    .execute();
  return rows.map(({ tag, ...key }) => ({ ...key, digest: digestOfTag.get(tag.toString('latin1')) ?? '' }));
}

/** Whether an organization has or had imported keys. Once true it stays true, because rows are never deleted. */
export async function hasImportedKeys(db: Db, organizationId: OrganizationId): Promise<boolean> {
  const rows = await db
    .selectFrom('api_keys')
    .select('id')
    .where('organization_id', '=', organizationId)
    .where('origin', '=', 'imported')
    .limit(1)
    .execute();
  return rows.length > 0;
}

/** A key's settings, and the external id of its partner. */
export type OwnedKey = Awaited<ReturnType<typeof findOwnedKeys>>[number];

export async function findOwnedKeys(db: Db, ids: readonly KeyId[]) {
  return db
    .selectFrom('api_keys')
    .leftJoin('partners', 'partners.id', 'api_keys.partner_id')
    .select([
      'api_keys.id',
      'api_keys.partner_id',
      'partners.external_id',
      'api_keys.permission',
      'api_keys.name',
      'api_keys.expires_at',
      'api_keys.rate_limit_requests',
      'api_keys.rate_limit_window_seconds',
      'api_keys.allowed_ips',
      'api_keys.scopes',
      'api_keys.metadata',
      'api_keys.deleted_at',
    ])
    .where('api_keys.id', '=', sql<KeyId>`any(${ids})`)
    .execute();
}
