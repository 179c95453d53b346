import type { Db, Tx } from '../database/client.ts';
import type { KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';
import { toRateLimit } from '../domain/rate-limit.ts';
import { toDetails } from './archives/archive.ts';
import { type State, toCreator } from './state-replay.ts';

/** Reads records from the tables as the states that `state-replay.ts` computes from events. */

/** Sorts after every id. */
export const afterAllIds = '\u{10ffff}';

export interface RecordRow {
  id: string;
  state: State;
}

export interface RowPage {
  before: string;
  limit: number;
}

/** Keys of an organization, newest first. */
export async function keyRows(
  tx: Tx,
  organizationId: OrganizationId,
  { before, limit }: RowPage,
): Promise<RecordRow[]> {
  const rows = await tx
    .selectFrom('api_keys')
    .select(['id', 'partner_id', 'permission', 'name', 'expires_at', 'allowed_ips', 'scopes', 'metadata', 'created_by'])
    .select(['rate_limit_requests', 'rate_limit_window_seconds'])
    .select([
      'origin',
      'suspended_at',
      'suspended_reason',
      'deleted_at',
      'delete_reason',
      'purged_at',
      'replaces_key_id',
    ])
    .where('organization_id', '=', organizationId)
    .where('id', '<', before as KeyId)
    .orderBy('id', 'desc')
    .limit(limit)
    .execute();
  return rows.map((row) => ({
    id: row.id,
    state: {
      partnerId: row.partner_id,
      permission: row.permission,
      origin: row.origin,
      name: row.name,
      expiresAt: toText(row.expires_at),
      rateLimit: toRateLimit(row),
      allowedIps: row.allowed_ips,
      scopes: row.scopes,
      metadata: row.metadata,
      replacesKeyId: row.replaces_key_id,
      suspendedAt: toText(row.suspended_at),
      suspendedReason: row.suspended_reason,
      deletedAt: toText(row.deleted_at),
      deleteReason: row.delete_reason,
      purgedAt: toText(row.purged_at),
      createdBy: toCreator(row.created_by),
    },
  }));
}

/** Partners of an organization, newest first. */
export async function partnerRows(
  tx: Tx,
  organizationId: OrganizationId,
  { before, limit }: RowPage,
): Promise<RecordRow[]> {
  const rows = await tx
    .selectFrom('partners')
    .select(['id', 'email', 'name', 'external_id', 'permissions', 'rate_limit_requests', 'rate_limit_window_seconds'])
    .select(['metadata', 'suspended_at', 'deleted_at', 'created_by'])
    .where('organization_id', '=', organizationId)
    .where('id', '<', before as PartnerId)
    .orderBy('id', 'desc')
    .limit(limit)
    .execute();
  return rows.map((row) => ({
    id: row.id,
    state: {
      email: row.email,
      name: row.name,
      externalId: row.external_id,
      metadata: row.metadata,
      permissions: row.permissions,
      rateLimit: toRateLimit(row),
      suspendedAt: toText(row.suspended_at),
      deletedAt: toText(row.deleted_at),
      createdBy: toCreator(row.created_by),
    },
  }));
}

/**
 * All access tokens of an organization, or with null those of the installation (operators and installation-wide
 * verifiers).
 */
export async function accessTokenRows(tx: Tx, organizationId: OrganizationId | null): Promise<RecordRow[]> {
  const rows = await tx
    .selectFrom('access_tokens')
    .select(['id', 'role', 'name', 'email', 'scopes', 'expires_at', 'deleted_at', 'created_by'])
    .where('organization_id', organizationId === null ? 'is' : '=', organizationId)
    .execute();
  return rows.map((row) => ({
    id: row.id,
    state: {
      role: row.role,
      name: row.name,
      email: row.email,
      scopes: row.scopes,
      expiresAt: toText(row.expires_at),
      deletedAt: toText(row.deleted_at),
      createdBy: toCreator(row.created_by),
    },
  }));
}

/** The organization's row, as a list of at most one. */
export async function organizationRows(tx: Tx, organizationId: OrganizationId): Promise<RecordRow[]> {
  const rows = await tx
    .selectFrom('organizations')
    .select(['id', 'name', 'key_reveal', 'leak_response', 'self_service', 'max_key_lifetime_seconds'])
    .select(['default_key_lifetime_seconds', 'idle_suspend_after_days', 'created_by'])
    .select(['rate_limit_requests', 'rate_limit_window_seconds'])
    .where('id', '=', organizationId)
    .execute();
  return rows.map((row) => ({
    id: row.id,
    state: {
      name: row.name,
      keyReveal: row.key_reveal,
      leakResponse: row.leak_response,
      selfService: row.self_service,
      maxKeyLifetimeSeconds: row.max_key_lifetime_seconds,
      defaultKeyLifetimeSeconds: row.default_key_lifetime_seconds,
      idleSuspendAfterDays: row.idle_suspend_after_days,
      rateLimit: toRateLimit(row),
      createdBy: toCreator(row.created_by),
    },
  }));
}

/** All archives of the installation, of every chain: their events are in the installation's chain. */
export async function archiveRows(tx: Tx): Promise<RecordRow[]> {
  const rows = await tx.selectFrom('history_archives').selectAll().execute();
  return rows.map((row) => ({ id: row.id, state: toDetails(row) }));
}

/** Ids of all organizations, including those without events. */
export async function listOrganizationIds(db: Db): Promise<OrganizationId[]> {
  const rows = await db.selectFrom('organizations').select('id').orderBy('id').execute();
  return rows.map(({ id }) => id);
}

/** Times outside the range of `Date` are shown as they are. */
function toText(at: Date | number | null): string | null {
  if (at === null) return null;
  return typeof at === 'number' || Number.isNaN(at.getTime()) ? String(at) : at.toISOString();
}
