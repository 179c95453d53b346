import type { Selectable } from 'kysely';
import { sql } from 'kysely';
import type { AccessTokenId, KeyId, OrganizationId } from '../core/ids.ts';
import { KeptRecord } from '../core/kept-records.ts';
import type { Keyring } from '../crypto/keyring.ts';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import type { AccessTokensTable } from '../db/schema.ts';
import { pagesOf } from '../lib/batches.ts';
import { ApiKeyRecord, type ApiKeyRow } from './api-key-record.ts';
import { isAuthenticKey, isAuthenticToken, keyMac, keyMacColumns, tokenMac } from './record-mac.ts';

export interface AccessTokenRecord
  extends KeptRecord,
    Omit<Selectable<AccessTokensTable>, 'tag' | 'mac' | 'mac_keyring_id'> {
  /** Its bytes as Latin-1. */
  tag: string;
}

/** What it takes to trust a row. */
export interface Authentication {
  keyring: Keyring;
  /** Called for a row whose MAC is wrong. It is treated as if it did not exist. */
  onForged: (id: string) => void;
}

/** Those of the ids that exist and are authentic, in one query. */
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
    return Object.assign(new KeptRecord(), columns, { tag: row.tag.toString('latin1') });
  });
}

const timeColumn = sql<Date>`clock_timestamp()`.as('database_time');

function sampleTime(clock: DatabaseClock, [row]: Array<{ database_time: Date }>, sentAtMs: number): void {
  if (row !== undefined) clock.sample(row.database_time.getTime(), sentAtMs, performance.now());
}

export interface ApiKeyLoading extends Authentication {
  /** See `ApiKeyRecord`. */
  shared: (text: string) => string;
}

/** Those of the ids that exist and are authentic, in one query. */
export async function loadApiKeys(
  db: Db,
  clock: DatabaseClock,
  ids: KeyId[],
  { keyring, onForged, shared }: ApiKeyLoading,
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
      'partner.email as partner_email',
      'partner.suspended_at as partner_suspended_at',
      'key.permission',
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
    return new ApiKeyRecord(hashOnlyIfLost(row, keyring), shared);
  });
}

/** The hash takes as much memory as all else of a key, and decides only where the tag's keyring entry is lost. */
function hashOnlyIfLost(row: ApiKeyRow, { lostIds }: Keyring): ApiKeyRow {
  return lostIds.has(row.tag_keyring_id) ? row : { ...row, argon2id_hash: null };
}

/** Stores a tag under the primary keyring entry. A row that is not authentic stays as it is. */
export async function replaceTag(
  db: Db,
  keyring: Keyring,
  table: 'api_keys' | 'access_tokens',
  id: KeyId | AccessTokenId,
  tag: { tag: Buffer; tag_keyring_id: string },
): Promise<void> {
  await db.transaction().execute(async (tx) => {
    if (table === 'api_keys') {
      const stored = tx.selectFrom('api_keys').select([...keyMacColumns, 'mac', 'mac_keyring_id']);
      const keys = stored.where('id', '=', id as KeyId).where('purged_at', 'is', null);
      const key = await keys.forNoKeyUpdate().executeTakeFirst();
      if (key === undefined || !isAuthenticKey(keyring, key)) return;
      const change = { ...tag, ...keyMac(keyring, { ...key, ...tag }) };
      await tx.updateTable('api_keys').set(change).where('id', '=', key.id).execute();
    } else {
      const tokens = tx
        .selectFrom('access_tokens')
        .selectAll()
        .where('id', '=', id as AccessTokenId);
      const token = await tokens.forNoKeyUpdate().executeTakeFirst();
      if (token === undefined || !isAuthenticToken(keyring, token)) return;
      const change = { ...tag, ...tokenMac(keyring, { ...token, ...tag }) };
      await tx.updateTable('access_tokens').set(change).where('id', '=', token.id).execute();
    }
  });
}

const rowsInBatch = 1_000;

/** Ids of credentials whose row is not authentic. Reads every one of them, in batches. */
export async function findForgedCredentials(db: Db, keyring: Keyring): Promise<string[]> {
  const forged: string[] = [];
  for await (const keys of pagesOf<KeyRow>((last) => keysAfter(db, last?.id ?? ''))) {
    forged.push(...keys.filter((key) => !isAuthenticKey(keyring, key)).map(({ id }) => id));
  }
  const tokens = await db.selectFrom('access_tokens').selectAll().execute();
  return [...forged, ...tokens.filter((token) => !isAuthenticToken(keyring, token)).map(({ id }) => id)];
}

type KeyRow = Awaited<ReturnType<typeof keysAfter>>[number];

function keysAfter(db: Db, after: string) {
  return db
    .selectFrom('api_keys')
    .select([...keyMacColumns, 'mac', 'mac_keyring_id'])
    .where('purged_at', 'is', null)
    .where('id', '>', after as KeyId)
    .orderBy('id')
    .limit(rowsInBatch)
    .execute();
}

export async function organizationExists(db: Db, id: OrganizationId): Promise<boolean> {
  const row = await db.selectFrom('organizations').select('id').where('id', '=', id).executeTakeFirst();
  return row !== undefined;
}
