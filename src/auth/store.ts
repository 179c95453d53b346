import type { Selectable } from 'kysely';
import { sql } from 'kysely';
import type { AccessTokenId, KeyId, OrganizationId, PartnerId } from '../core/ids.ts';
import type { Permission } from '../core/permissions.ts';
import { apart } from '../crypto/tag.ts';
import type { Db } from '../db/client.ts';
import type { DatabaseClock } from '../db/clock.ts';
import type { AccessTokensTable } from '../db/schema.ts';

export type AccessTokenRecord = Selectable<AccessTokensTable>;

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
  for (const row of rows) row.tag = apart(row.tag);
  return rows;
}

const timeColumn = sql<Date>`clock_timestamp()`.as('database_time');

function sampleTime(clock: DatabaseClock, [row]: Array<{ database_time: Date }>, sentAtMs: number): void {
  if (row !== undefined) clock.sample(row.database_time.getTime(), sentAtMs, performance.now());
}

/** A key joined with what decides about it beside itself. */
export interface ApiKeyRecord {
  id: KeyId;
  organization_id: OrganizationId;
  partner_id: PartnerId | null;
  partner_email: string | null;
  partner_suspended_at: Date | null;
  permission: Permission;
  name: string | null;
  metadata: Record<string, unknown>;
  tag: Buffer;
  tag_keyring_id: string;
  argon2id_hash: string | null;
  created_at: Date;
  expires_at: Date | null;
  allowed_ips: string[];
  suspended_at: Date | null;
  deleted_at: Date | null;
  /** The key's own limit, which counts besides its owner's. */
  rate_limit_requests: number | null;
  rate_limit_window_seconds: number | null;
  /** The partner's limit, else the organization's. */
  owner_limit_requests: number;
  owner_limit_window_seconds: number;
}

/** Those of the ids that exist, in one query. */
export async function loadApiKeys(db: Db, clock: DatabaseClock, ids: KeyId[]): Promise<ApiKeyRecord[]> {
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
  for (const row of rows) row.tag = apart(row.tag);
  return rows;
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
