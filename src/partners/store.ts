import { type Selectable, sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { PartnersTable } from '../database/tables/partners.ts';
import { requireFound } from '../domain/errors.ts';
import type { OrganizationId, PartnerId } from '../domain/ids.ts';

export type Partner = Selectable<PartnersTable>;

const columns = [
  'id',
  'organization_id',
  'email',
  'name',
  'permissions',
  'rate_limit_requests',
  'rate_limit_window_seconds',
  'created_at',
  'created_by',
  'suspended_at',
  'deleted_at',
] as const;

/** @throws Problem `not_found`, also for another organization's partner */
export async function getPartner(db: Db, organizationId: OrganizationId, id: string): Promise<Partner> {
  const partner = await db
    .selectFrom('partners')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('id', '=', id as PartnerId)
    .executeTakeFirst();
  return requireFound(partner, 'partner in this organization');
}

/** Locks a partner. Serializes all changes that depend on the partner being live. */
export async function lockPartner(tx: Tx, organizationId: OrganizationId, id: string): Promise<Partner> {
  const partner = await tx
    .selectFrom('partners')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('id', '=', id as PartnerId)
    .forNoKeyUpdate()
    .executeTakeFirst();
  return requireFound(partner, 'partner in this organization');
}

/** Newest first, up to `limit + 1`. */
export async function listPartners(
  db: Db,
  organizationId: OrganizationId,
  filter: { email?: string | undefined; includeDeleted: boolean },
  page: { limit: number; before: PartnerId | undefined },
): Promise<Partner[]> {
  let query = db
    .selectFrom('partners')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .orderBy('id', 'desc')
    .limit(page.limit + 1);
  if (page.before !== undefined) query = query.where('id', '<', page.before);
  if (!filter.includeDeleted) query = query.where('deleted_at', 'is', null);
  const { email } = filter;
  if (email !== undefined) query = query.where(sql`lower(email)`, '=', sql`lower(${email}::text collate "C")`);
  return query.execute();
}

export async function insertPartner(tx: Tx, partner: Partner): Promise<void> {
  await tx
    .insertInto('partners')
    .values({ ...partner, created_by: JSON.stringify(partner.created_by) })
    .execute();
}

export type PartnerFields = Partial<
  Pick<Partner, 'email' | 'name' | 'permissions' | 'rate_limit_requests' | 'rate_limit_window_seconds'>
>;

export async function updatePartner(tx: Tx, id: PartnerId, fields: PartnerFields): Promise<void> {
  await tx.updateTable('partners').set(fields).where('id', '=', id).execute();
}

export async function markPartnerDeleted(tx: Tx, id: PartnerId, deletedAt: Date): Promise<void> {
  await tx.updateTable('partners').set({ deleted_at: deletedAt }).where('id', '=', id).execute();
}

/** @param suspendedAt null to resume the partner */
export async function markPartnerSuspended(tx: Tx, id: PartnerId, suspendedAt: Date | null): Promise<void> {
  await tx.updateTable('partners').set({ suspended_at: suspendedAt }).where('id', '=', id).execute();
}

export async function markPartnerRestored(tx: Tx, id: PartnerId): Promise<void> {
  await tx.updateTable('partners').set({ deleted_at: null }).where('id', '=', id).execute();
}
