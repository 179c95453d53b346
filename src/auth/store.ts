import type { Selectable } from 'kysely';
import { sql } from 'kysely';
import type { AccessTokenId, KeyId, OrganizationId } from '../core/ids.ts';
import { KeptRecord } from '../core/kept-records.ts';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import type { AccessTokensTable } from '../db/schema.ts';
import { ApiKeyRecord } from './api-key-record.ts';

export interface AccessTokenRecord extends KeptRecord, Omit<Selectable<AccessTokensTable>, 'tag'> {
  /** Its bytes as Latin-1. */
  tag: string;
}

/** Those of the ids that exist, in one query. */
export async function loadAccessTokens(
  db: Db,
  clock: DatabaseClock,
  ids: AccessTokenId[],
): Promise<AccessTokenRecord[]> {
  const sentAtMs = performance.now();
  const rows = await db
    .selectFrom('access_tokens')
    .selectAll()
    .select(timeColumn)
    .where('id', '=', sql<AccessTokenId>`any(${ids})`)
    .execute();
  sampleTime(clock, rows, sentAtMs);
  return rows.map((row) => Object.assign(new KeptRecord(), row, { tag: row.tag.toString('latin1') }));
}

const timeColumn = sql<Date>`clock_timestamp()`.as('database_time');

function sampleTime(clock: DatabaseClock, [row]: Array<{ database_time: Date }>, sentAtMs: number): void {
  if (row !== undefined) clock.sample(row.database_time.getTime(), sentAtMs, performance.now());
}

export interface ApiKeyLoading {
  /** Of the keyring's entries, whose tags decide by themselves. */
  tagKeyringIds: string[];
  /** See `ApiKeyRecord`. */
  shared: (text: string) => string;
}

/** Those of the ids that exist, in one query. */
export async function loadApiKeys(
  db: Db,
  clock: DatabaseClock,
  ids: KeyId[],
  { tagKeyringIds, shared }: ApiKeyLoading,
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
      // Only where nothing else can vouch for the token: it takes as much memory as all that decides.
      sql<string | null>`case when key.tag_keyring_id <> all(${tagKeyringIds}) then key.argon2id_hash end`.as(
        'argon2id_hash',
      ),
      'key.created_at',
      'key.expires_at',
      'key.allowed_ips',
      'key.suspended_at',
      'key.deleted_at',
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
  return rows.map((row) => new ApiKeyRecord(row, shared));
}

/** The tag made anew under the primary keyring entry, after the argon2id hash has vouched for the token. */
export async function replaceTag(
  db: Db,
  table: 'api_keys' | 'access_tokens',
  id: KeyId | AccessTokenId,
  tag: { tag: Buffer; tag_keyring_id: string },
): Promise<void> {
  if (table === 'api_keys') {
    await db
      .updateTable('api_keys')
      .set(tag)
      .where('id', '=', id as KeyId)
      .where('purged_at', 'is', null)
      .execute();
  } else {
    await db
      .updateTable('access_tokens')
      .set(tag)
      .where('id', '=', id as AccessTokenId)
      .execute();
  }
}

export async function organizationExists(db: Db, id: OrganizationId): Promise<boolean> {
  const row = await db.selectFrom('organizations').select('id').where('id', '=', id).executeTakeFirst();
  return row !== undefined;
}
