import { type RawBuilder, type Selectable, sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import { violatedConstraint } from '../database/pg-error.ts';
import type { PartnersTable } from '../database/tables/partners.ts';
import { Problem, requireFound } from '../domain/errors.ts';
import type { OrganizationId, PartnerId } from '../domain/ids.ts';

export type Partner = Selectable<PartnersTable>;

const columns = [
  'id',
  'organization_id',
  'email',
  'name',
  'external_id',
  'metadata',
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
  return requireFound(await selectPartner(db, organizationId, id).executeTakeFirst(), 'partner in this organization');
}

/** Locks a partner. Serializes all changes that depend on the partner being live. */
export async function lockPartner(tx: Tx, organizationId: OrganizationId, id: string): Promise<Partner> {
  const query = selectPartner(tx, organizationId, id).forNoKeyUpdate();
  return requireFound(await query.executeTakeFirst(), 'partner in this organization');
}

function selectPartner(db: Db, organizationId: OrganizationId, id: string) {
  return db
    .selectFrom('partners')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('id', '=', id as PartnerId);
}

/** The live partners with these external ids. */
export async function findPartnerIds(
  db: Db,
  organizationId: OrganizationId,
  externalIds: readonly string[],
): Promise<PartnerId[]> {
  if (externalIds.length === 0) return [];
  const rows = await db
    .selectFrom('partners')
    .select('id')
    .where('organization_id', '=', organizationId)
    .where('external_id', '=', sql<string>`any(${externalIds})`)
    .where('deleted_at', 'is', null)
    .execute();
  return rows.map(({ id }) => id);
}

/** Locks several partners, in the order of their ids so that two commands cannot block each other. Leaves out unknown ids. */
export async function lockPartners(tx: Tx, organizationId: OrganizationId, ids: readonly string[]): Promise<Partner[]> {
  if (ids.length === 0) return [];
  return tx
    .selectFrom('partners')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('id', '=', sql<PartnerId>`any(${ids})`)
    .orderBy('id')
    .forNoKeyUpdate()
    .execute();
}

/** Newest first, up to `limit + 1`. */
export async function listPartners(
  db: Db,
  organizationId: OrganizationId,
  filter: { email?: string | undefined; externalId?: string | undefined; includeDeleted: boolean },
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
  const { email, externalId } = filter;
  if (email !== undefined) query = query.where(sql`lower(email)`, '=', lowerCase(email));
  if (externalId !== undefined) query = query.where('external_id', '=', externalId);
  return query.execute();
}

function lowerCase(email: string): RawBuilder<string> {
  return sql`lower(${email}::text collate "C")`;
}

/** The members that no two live partners of an organization share. */
type UniqueMembers = Pick<Partner, 'organization_id' | 'email' | 'external_id'>;

/** @throws Problem `partner_exists`, `external_id_exists` */
export async function insertPartner(tx: Tx, partner: Partner): Promise<void> {
  const { created_by, metadata } = partner;
  const insert = tx
    .insertInto('partners')
    .values({ ...partner, created_by: JSON.stringify(created_by), metadata: JSON.stringify(metadata) });
  await writeUnique(tx, partner, insert);
}

export type PartnerFields = Pick<
  Partner,
  'email' | 'name' | 'external_id' | 'metadata' | 'permissions' | 'rate_limit_requests' | 'rate_limit_window_seconds'
>;

/** @throws Problem `partner_exists`, `external_id_exists` */
export async function updatePartner(
  tx: Tx,
  { id, organization_id }: Pick<Partner, 'id' | 'organization_id'>,
  fields: PartnerFields,
): Promise<void> {
  const columns = { ...fields, metadata: JSON.stringify(fields.metadata) };
  const update = tx.updateTable('partners').set(columns).where('id', '=', id);
  await writeUnique(tx, { ...fields, organization_id }, update);
}

export async function markPartnerDeleted(tx: Tx, id: PartnerId, deletedAt: Date): Promise<void> {
  await tx.updateTable('partners').set({ deleted_at: deletedAt }).where('id', '=', id).execute();
}

/** @param suspendedAt null to resume the partner */
export async function markPartnerSuspended(tx: Tx, id: PartnerId, suspendedAt: Date | null): Promise<void> {
  await tx.updateTable('partners').set({ suspended_at: suspendedAt }).where('id', '=', id).execute();
}

/** @throws Problem `partner_exists`, `external_id_exists` */
export async function markPartnerRestored(tx: Tx, partner: Pick<Partner, 'id'> & UniqueMembers): Promise<void> {
  await writeUnique(tx, partner, tx.updateTable('partners').set({ deleted_at: null }).where('id', '=', partner.id));
}

/**
 * Executes a write. If it violates a unique index, only the write is rolled back, so that the problem can name the partner
 * that has the value. A check before the write would miss a partner that another transaction creates meanwhile.
 */
async function writeUnique(tx: Tx, members: UniqueMembers, write: { execute(): Promise<unknown> }): Promise<void> {
  await sql`savepoint partner_write`.execute(tx);
  try {
    await write.execute();
  } catch (error) {
    const constraint = violatedConstraint(error);
    if (constraint === undefined) throw error;
    await sql`rollback to savepoint partner_write`.execute(tx);
    throw (await takenBy(tx, members, constraint)) ?? error;
  }
  await sql`release savepoint partner_write`.execute(tx);
}

/** @returns undefined if another rule was violated, or if the other partner was deleted meanwhile */
async function takenBy(
  tx: Tx,
  { organization_id, email, external_id }: UniqueMembers,
  constraint: string,
): Promise<Problem | undefined> {
  const live = tx
    .selectFrom('partners')
    .select('id')
    .where('organization_id', '=', organization_id)
    .where('deleted_at', 'is', null);
  if (constraint === 'partners_live_email') {
    const holder = await live.where(sql`lower(email)`, '=', lowerCase(email)).executeTakeFirst();
    return holder && taken('partner_exists', `Partner ${holder.id} already has this e-mail address.`, holder.id);
  }
  if (constraint === 'partners_live_external_id') {
    const holder = await live.where('external_id', '=', external_id).executeTakeFirst();
    return holder && taken('external_id_exists', `Partner ${holder.id} already has this externalId.`, holder.id);
  }
  return undefined;
}

function taken(code: 'partner_exists' | 'external_id_exists', detail: string, partnerId: PartnerId): Problem {
  return new Problem(code, detail, { members: { partnerId } });
}
