import { type Selectable, sql } from 'kysely';
import { isAuthenticKey, keyMac, keyMacColumns, type MacCoveredKey } from '../credentials/record-mac.ts';
import type { Keyring } from '../crypto/keyring.ts';
import type { MacColumns } from '../crypto/mac.ts';
import type { Db, Tx } from '../database/client.ts';
import type { ApiKeysTable, DeleteReason } from '../database/tables/api-keys.ts';
import { Problem, requireFound } from '../domain/errors.ts';
import type { KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';
import type { Access, Permission } from '../domain/permissions.ts';
import { foldCase } from './policy.ts';
import { findKeys, type KeySearch } from './search.ts';

/** A key without its tag, hash and sealed values, which no view contains. */
export type Key = Omit<
  Selectable<ApiKeysTable>,
  | 'resumed_at'
  | 'tag'
  | 'tag_keyring_id'
  | 'argon2id_hash'
  | 'mac'
  | 'mac_keyring_id'
  | 'sealed'
  | 'sealed_keyring_id'
  | 'digest_sealed'
  | 'digest_keyring_id'
>;

/** A key with all data that a reply shows. */
export interface ShownKey extends Key {
  /** The time of the last allowed verification. */
  last_used_at: Date | null;
}

const columns = [
  'id',
  'organization_id',
  'partner_id',
  'permission',
  'slot',
  'origin',
  'name',
  'folded_name',
  'last_four',
  'expires_at',
  'allowed_ips',
  'scopes',
  'metadata',
  'replaces_key_id',
  'limit_bucket_id',
  'rate_limit_requests',
  'rate_limit_window_seconds',
  'created_at',
  'created_by',
  'suspended_at',
  'suspended_reason',
  'deleted_at',
  'delete_reason',
  'purged_at',
] as const;

/** The last allowed verification of the key in `api_keys`. */
export const lastUse = sql<Date | null>`(select last_used_at from key_last_uses where key_id = api_keys.id)`;

const lastUsedAt = lastUse.as('last_used_at');

/** Adds the last use for a reply. Locking and changing a key do not read its usage. */
export async function withLastUse(db: Db, key: Key): Promise<ShownKey> {
  const use = await db.selectFrom('api_keys').select(lastUsedAt).where('id', '=', key.id).executeTakeFirstOrThrow();
  return { ...key, ...use };
}

/** What is needed to write authenticated rows; part of `Work`. */
export interface Writer {
  tx: Tx;
  keyring: Keyring;
}

/** Identifies a row: its owner (null is the organization itself) and its permission. */
export interface RowAddress {
  organizationId: OrganizationId;
  partnerId: PartnerId | null;
  permission: Permission;
}

/** @throws Problem `not_found`, also for another organization's key and for one that was purged */
export async function getKey(db: Db, organizationId: OrganizationId, id: string): Promise<ShownKey> {
  const query = selectKey(db, organizationId, id).select(lastUsedAt).where('purged_at', 'is', null);
  return requireFound(await query.executeTakeFirst(), 'key in this organization');
}

/** Locks a key for a change or a reveal. @throws Problem `not_found`, as `getKey` */
export async function lockKey(tx: Tx, organizationId: OrganizationId, id: string): Promise<Key> {
  const query = selectKey(tx, organizationId, id).where('purged_at', 'is', null);
  return requireFound(await query.forNoKeyUpdate().executeTakeFirst(), 'key in this organization');
}

/** Locks the organization's keys among these, in the order of their ids. Unknown and purged ones are left out. */
export async function lockKeys(tx: Tx, organizationId: OrganizationId, ids: readonly KeyId[]): Promise<Key[]> {
  return tx
    .selectFrom('api_keys')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('id', '=', sql<KeyId>`any(${ids})`)
    .where('purged_at', 'is', null)
    .orderBy('id')
    .forNoKeyUpdate()
    .execute();
}

/** Like `lockKey`, including purged keys. @throws Problem `not_found` */
export async function lockKeyIncludingPurged(tx: Tx, organizationId: OrganizationId, id: string): Promise<Key> {
  return requireFound(
    await selectKey(tx, organizationId, id).forNoKeyUpdate().executeTakeFirst(),
    'key in this organization',
  );
}

/** The unchanging owner of a key, including purged ones. @throws Problem `not_found` */
export async function getKeyOwner(
  db: Db,
  organizationId: OrganizationId,
  id: string,
): Promise<{ keyId: KeyId; partnerId: PartnerId | null }> {
  const key = await db
    .selectFrom('api_keys')
    .select(['id as keyId', 'partner_id as partnerId'])
    .where('organization_id', '=', organizationId)
    .where('id', '=', id as KeyId)
    .executeTakeFirst();
  return requireFound(key, 'key in this organization');
}

function selectKey(db: Db, organizationId: OrganizationId, id: string) {
  return db
    .selectFrom('api_keys')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('id', '=', id as KeyId);
}

export interface SealedColumns {
  sealed: Buffer;
  sealed_keyring_id: string;
}

/** The sealed plaintext; undefined if none is stored. For reveals only. */
export async function findSealed(tx: Tx, id: KeyId): Promise<SealedColumns | undefined> {
  const row = await tx
    .selectFrom('api_keys')
    .select(['sealed', 'sealed_keyring_id'])
    .where('id', '=', id)
    .executeTakeFirst();
  if (row === undefined || row.sealed === null || row.sealed_keyring_id === null) return undefined;
  return { sealed: row.sealed, sealed_keyring_id: row.sealed_keyring_id };
}

/** The at most two live keys of a row, locked in the order of their ids. Lock the owner first to add a key. */
export async function lockLiveKeysOfRow(tx: Tx, row: RowAddress): Promise<Key[]> {
  return tx
    .selectFrom('api_keys')
    .select(columns)
    .where('organization_id', '=', row.organizationId)
    .where('partner_id', row.partnerId === null ? 'is' : '=', row.partnerId)
    .where('permission', '=', row.permission)
    .where('deleted_at', 'is', null)
    .orderBy('id')
    .forNoKeyUpdate()
    .execute();
}

/** The live keys in all rows of these owners, locked for change; null is the organization itself. Lock the owners first. */
export async function lockLiveKeysOfOwners(
  tx: Tx,
  organizationId: OrganizationId,
  owners: ReadonlyArray<PartnerId | null>,
): Promise<Key[]> {
  return liveKeysOf(tx, organizationId, owners).forNoKeyUpdate().execute();
}

/** The live keys of a partner with these permissions, locked for change. */
export async function lockLiveKeysOfPartner(
  tx: Tx,
  partnerId: PartnerId,
  permissions: readonly Access[],
): Promise<Key[]> {
  return tx
    .selectFrom('api_keys')
    .select(columns)
    .where('partner_id', '=', partnerId)
    .where('permission', 'in', permissions)
    .where('deleted_at', 'is', null)
    .orderBy('id')
    .forNoKeyUpdate()
    .execute();
}

/** The live keys of several owners, oldest first; null is the organization itself. */
export async function liveKeysOfOwners(
  db: Db,
  organizationId: OrganizationId,
  owners: ReadonlyArray<PartnerId | null>,
): Promise<ShownKey[]> {
  return liveKeysOf(db, organizationId, owners).select(lastUsedAt).execute();
}

function liveKeysOf(db: Db, organizationId: OrganizationId, owners: ReadonlyArray<PartnerId | null>) {
  const partnerIds = owners.filter((owner) => owner !== null);
  return db
    .selectFrom('api_keys')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where(({ or, eb }) =>
      or([
        eb('partner_id', '=', sql<PartnerId>`any(${partnerIds})`),
        ...(owners.includes(null) ? [eb('partner_id', 'is', null)] : []),
      ]),
    )
    .where('deleted_at', 'is', null)
    .orderBy('id');
}

/** Newest first, up to `limit + 1`. */
export async function listKeys(
  db: Db,
  search: KeySearch,
  { limit, before }: { limit: number; before: KeyId | undefined },
): Promise<ShownKey[]> {
  const ids = await findKeys(db, search, { limit: limit + 1, before });
  return db
    .selectFrom('api_keys')
    .select([...columns, lastUsedAt])
    .where('id', '=', sql<KeyId>`any(${ids})`)
    .orderBy('id', 'desc')
    .execute();
}

export type NewKey = Omit<
  Selectable<ApiKeysTable>,
  | 'mac'
  | 'mac_keyring_id'
  | 'folded_name'
  | 'suspended_at'
  | 'suspended_reason'
  | 'resumed_at'
  | 'deleted_at'
  | 'delete_reason'
  | 'purged_at'
>;

export async function insertKey(writer: Writer, key: NewKey): Promise<Key> {
  const [inserted] = await insertKeys(writer, [key]);
  if (inserted === undefined) throw new Error(`Key ${key.id} was not inserted`);
  return inserted;
}

/** Inserts keys in one statement and returns them in their order. */
export async function insertKeys({ tx, keyring }: Writer, keys: readonly NewKey[]): Promise<Key[]> {
  return tx
    .insertInto('api_keys')
    .values(
      keys.map((key) => ({
        ...key,
        ...keyMac(keyring, { ...key, delete_reason: null }),
        folded_name: foldName(key.name),
        created_by: JSON.stringify(key.created_by),
        metadata: JSON.stringify(key.metadata),
      })),
    )
    .returning(columns)
    .execute();
}

function foldName(name: string | null): string | null {
  return name === null ? null : foldCase(name);
}

export type KeyFields = Partial<
  Pick<
    Key,
    'name' | 'expires_at' | 'allowed_ips' | 'scopes' | 'metadata' | 'rate_limit_requests' | 'rate_limit_window_seconds'
  >
>;

/** The key must be locked. */
export async function updateKey(writer: Writer, id: KeyId, { metadata, ...fields }: KeyFields): Promise<Key> {
  const mac = await renewedMac(writer, id, fields);
  return writer.tx
    .updateTable('api_keys')
    .set({
      ...fields,
      ...mac,
      ...(fields.name === undefined ? {} : { folded_name: foldName(fields.name) }),
      ...(metadata === undefined ? {} : { metadata: JSON.stringify(metadata) }),
    })
    .where('id', '=', id)
    .returning(columns)
    .executeTakeFirstOrThrow();
}

/** The keys must be locked. Only `compromised` may be used for keys that are already deleted. */
export async function markKeysDeleted(
  writer: Writer,
  ids: readonly KeyId[],
  deleted: { at: Date; reason: DeleteReason },
): Promise<Key[]> {
  if (ids.length === 0) return [];
  if (deleted.reason === 'compromised') {
    const keys: Key[] = [];
    for (const id of ids) keys.push(await markKeyCompromised(writer, id, deleted.at));
    return keys;
  }
  return writer.tx
    .updateTable('api_keys')
    .set({ deleted_at: deleted.at, delete_reason: deleted.reason })
    .where('id', '=', sql<KeyId>`any(${ids})`)
    .returning(columns)
    .execute();
}

/** Deletes the hash and the sealed values. The tag stays, to recognize the key. */
async function markKeyCompromised(writer: Writer, id: KeyId, at: Date): Promise<Key> {
  const covered = { delete_reason: 'compromised', argon2id_hash: null } as const;
  return writer.tx
    .updateTable('api_keys')
    .set({
      ...covered,
      ...(await renewedMac(writer, id, covered)),
      deleted_at: sql<Date>`coalesce(deleted_at, ${at})`,
      sealed: null,
      sealed_keyring_id: null,
      digest_sealed: null,
      digest_keyring_id: null,
    })
    .where('id', '=', id)
    .returning(columns)
    .executeTakeFirstOrThrow();
}

/** The MAC for the changed key. A row that is not authentic keeps its MAC, and so stays rejected. */
async function renewedMac(
  { tx, keyring }: Writer,
  id: KeyId,
  change: Partial<MacCoveredKey>,
): Promise<Partial<MacColumns>> {
  const key = await macCoveredKey(tx, id);
  return isAuthenticKey(keyring, key) ? keyMac(keyring, { ...key, ...change }) : {};
}

/**
 * Rejects a key whose row is not authentic, so that its data is not copied to another key. The key must be locked.
 * @throws Problem `conflict`
 */
export async function requireAuthenticKey({ tx, keyring }: Writer, id: KeyId): Promise<void> {
  if (isAuthenticKey(keyring, await macCoveredKey(tx, id))) return;
  throw new Problem(
    'conflict',
    `Key ${id} is not authentic: its row was changed without the keyring, or the keyring lacks the entry of its MAC. Create a new key.`,
  );
}

function macCoveredKey(tx: Tx, id: KeyId) {
  return tx
    .selectFrom('api_keys')
    .select([...keyMacColumns, 'mac', 'mac_keyring_id'])
    .where('id', '=', id)
    .executeTakeFirstOrThrow();
}

/** The keys must be locked. */
export async function markKeysSuspended(
  tx: Tx,
  ids: readonly KeyId[],
  suspension: Pick<Key, 'suspended_at' | 'suspended_reason'> & { resumed_at?: Date },
): Promise<Key[]> {
  return tx
    .updateTable('api_keys')
    .set(suspension)
    .where('id', '=', sql<KeyId>`any(${ids})`)
    .returning(columns)
    .execute();
}

/** Makes a key live again in this slot of its row. */
export async function markKeyRestored(tx: Tx, id: KeyId, { slot, at }: { slot: 1 | 2; at: Date }): Promise<Key> {
  return tx
    .updateTable('api_keys')
    .set({ deleted_at: null, delete_reason: null, slot, resumed_at: at })
    .where('id', '=', id)
    .returning(columns)
    .executeTakeFirstOrThrow();
}

/**
 * The keys that were deleted with their partner, locked. Keys that were declared compromised since are not included.
 */
export async function lockKeysDeletedWithPartner(tx: Tx, partnerId: PartnerId, deletedAt: Date): Promise<Key[]> {
  return tx
    .selectFrom('api_keys')
    .select(columns)
    .where('partner_id', '=', partnerId)
    .where('delete_reason', '=', 'partner_deleted')
    .where('deleted_at', '=', deletedAt)
    .orderBy('id')
    .forNoKeyUpdate()
    .execute();
}
