import type { Selectable } from 'kysely';
import { sql } from 'kysely';
import { isAuthenticKey, isAuthenticToken } from '../credentials/record-mac.ts';
import type { Keyring } from '../crypto/keyring.ts';
import { digestFrom, type TokenHash } from '../crypto/tag.ts';
import type { Db } from '../database/client.ts';
import type { DatabaseClock } from '../database/clock.ts';
import type { AccessTokensTable } from '../database/tables/access-tokens.ts';
import type { AccessTokenId, KeyId, OrganizationId } from '../domain/ids.ts';
import { findTokenHolders } from '../keys/import-store.ts';
import { ApiKeyRecord, type ApiKeyRow } from './api-key-record.ts';
import type { CachedRecord } from './key-cache.ts';

/** An access token as the key cache stores it. */
export interface AccessTokenRecord
  extends CachedRecord<AccessTokenId>,
    Omit<Selectable<AccessTokensTable>, 'id' | 'tag' | 'mac' | 'mac_keyring_id'> {
  /** The bytes as Latin-1. */
  tag: string;
  tokenHash: string | undefined;
}

/** How rows are authenticated. */
export interface Authentication {
  keyring: Keyring;
  /** Called for a row whose MAC is wrong. Such a row is treated as missing. */
  onForged: (id: string) => void;
}

/** Loads the existing, authentic access tokens among the ids, in one query. */
export async function loadAccessTokens(
  db: Db,
  clock: DatabaseClock,
  ids: AccessTokenId[],
  { keyring, onForged }: Authentication,
): Promise<AccessTokenRecord[]> {
  const sentAtMs = performance.now();
  const rows = await db
    .selectFrom('access_tokens')
    .selectAll()
    .select(timeColumn)
    .where('id', '=', sql<AccessTokenId>`any(${ids})`)
    .execute();
  sampleTime(clock, rows, sentAtMs);
  return rows.flatMap((row) => {
    if (!isAuthenticToken(keyring, row)) {
      onForged(row.id);
      return [];
    }
    const { mac: _, mac_keyring_id: __, ...columns } = row;
    return { ...columns, tag: row.tag.toString('latin1'), tokenHash: undefined, readAtMs: sentAtMs };
  });
}

const timeColumn = sql<Date>`clock_timestamp()`.as('database_time');

function sampleTime(clock: DatabaseClock, [row]: Array<{ database_time: Date }>, sentAtMs: number): void {
  if (row !== undefined) clock.sample(row.database_time.getTime(), sentAtMs, performance.now());
}

/** Loads the existing, authentic API keys among the ids, in one query. */
export async function loadApiKeys(
  db: Db,
  clock: DatabaseClock,
  ids: KeyId[],
  { keyring, onForged }: Authentication,
): Promise<ApiKeyRecord[]> {
  const sentAtMs = performance.now();
  const rows = await db
    .selectFrom('api_keys as key')
    .innerJoin('organizations as organization', 'organization.id', 'key.organization_id')
    .leftJoin('partners as partner', 'partner.id', 'key.partner_id')
    .select([
      'key.id',
      'key.organization_id',
      'key.partner_id',
      'partner.external_id as partner_external_id',
      'partner.email as partner_email',
      'partner.suspended_at as partner_suspended_at',
      'key.permission',
      'key.origin',
      'key.name',
      'key.metadata',
      'key.tag',
      'key.tag_keyring_id',
      'key.argon2id_hash',
      'key.delete_reason',
      'key.mac',
      'key.mac_keyring_id',
      'key.created_at',
      'key.expires_at',
      'key.allowed_ips',
      'key.scopes',
      'key.suspended_at',
      'key.deleted_at',
      'key.limit_bucket_id',
      'key.rate_limit_requests',
      'key.rate_limit_window_seconds',
      sql<number>`coalesce(partner.rate_limit_requests, organization.rate_limit_requests)`.as('owner_limit_requests'),
      sql<number>`coalesce(partner.rate_limit_window_seconds, organization.rate_limit_window_seconds)`.as(
        'owner_limit_window_seconds',
      ),
      timeColumn,
    ])
    .where('key.id', '=', sql<KeyId>`any(${ids})`)
    .where('key.purged_at', 'is', null)
    .$narrowType<{ tag: Buffer; tag_keyring_id: string }>()
    .execute();
  sampleTime(clock, rows, sentAtMs);
  return rows.flatMap((row) => {
    if (!isAuthenticKey(keyring, row)) {
      onForged(row.id);
      return [];
    }
    return new ApiKeyRecord(hashOnlyIfLost(row, keyring), sentAtMs);
  });
}

/** The hash doubles a key's memory and is needed only if the tag's keyring entry is lost. */
function hashOnlyIfLost(row: ApiKeyRow, { lostIds }: Keyring): ApiKeyRow {
  return lostIds.has(row.tag_keyring_id) ? row : { ...row, argon2id_hash: null };
}

/** Which key a token without Latchkey's form belongs to. */
export interface ImportedPointer extends CachedRecord<TokenHash> {
  keyId: KeyId;
}

/**
 * Finds the imported keys with these tokens, in one query. The key's own record proves the token: a pointer only says
 * where to look. A compromised key gives way to a later key with the same token.
 */
export async function loadImportedPointers(db: Db, keyring: Keyring, ids: TokenHash[]): Promise<ImportedPointer[]> {
  const readAtMs = performance.now();
  const pointers = new Map<string, ImportedPointer>();
  const digests = ids.map((id) => digestFrom(id).toString('hex'));
  for (const { id: keyId, digest, delete_reason } of await findTokenHolders(db, keyring, digests)) {
    if (delete_reason === 'compromised' && pointers.has(digest)) continue;
    pointers.set(digest, { id: Buffer.from(digest, 'hex').toString('latin1') as TokenHash, keyId, readAtMs });
  }
  return [...pointers.values()];
}

/** Stands for the whole installation, for callers of no organization. */
export const anyOrganization = 'any';

/** Whether an organization has imported keys. */
export interface ImportedPresence extends CachedRecord<OrganizationId | typeof anyOrganization> {
  isThere: boolean;
}

/** In one query; for every id there is an answer. */
export async function loadImportedPresence(db: Db, ids: Array<ImportedPresence['id']>): Promise<ImportedPresence[]> {
  const readAtMs = performance.now();
  const { rows } = await sql<Pick<ImportedPresence, 'id' | 'isThere'>>`
    select wanted.id, case wanted.id when ${anyOrganization} then exists (select from api_keys where origin = 'imported')
      else exists (select from api_keys where organization_id = wanted.id and origin = 'imported') end as "isThere"
    from unnest(${ids}::text[]) as wanted (id)`.execute(db);
  return rows.map((row) => ({ ...row, readAtMs }));
}
