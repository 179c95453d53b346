import { type Selectable, sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { OrganizationsTable } from '../database/tables/organizations.ts';
import { requireFound } from '../domain/errors.ts';
import type { OrganizationId } from '../domain/ids.ts';

export type Organization = Selectable<OrganizationsTable>;

const columns = [
  'id',
  'name',
  'key_reveal',
  'leak_response',
  'self_service',
  'max_key_lifetime_seconds',
  'default_key_lifetime_seconds',
  'idle_suspend_after_days',
  'rate_limit_requests',
  'rate_limit_window_seconds',
  'created_at',
  'created_by',
] as const;

export async function getOrganization(db: Db, id: string): Promise<Organization> {
  return requireFound(await selectOrganization(db, id).executeTakeFirst(), 'organization');
}

function selectOrganization(db: Db, id: string) {
  return db
    .selectFrom('organizations')
    .select(columns)
    .where('id', '=', id as OrganizationId);
}

export async function organizationExists(db: Db, id: OrganizationId): Promise<boolean> {
  const row = await db.selectFrom('organizations').select('id').where('id', '=', id).executeTakeFirst();
  return row !== undefined;
}

/** Whether the installation has been bootstrapped. */
export async function hasOrganization(db: Db): Promise<boolean> {
  return (await db.selectFrom('organizations').select('id').limit(1).executeTakeFirst()) !== undefined;
}

/** Compares names without regard to case and repeated blanks. */
export async function isOrganizationNameTaken(db: Db, name: string): Promise<boolean> {
  const { rows } = await sql`select from organizations
    where lower(regexp_replace(name, '\\s+', ' ', 'g')) = lower(regexp_replace(${name}, '\\s+', ' ', 'g')) limit 1`.execute(
    db,
  );
  return rows.length > 0;
}

/** Newest first, up to `limit + 1`. */
export async function listOrganizations(
  db: Db,
  page: { limit: number; before: OrganizationId | undefined },
): Promise<Organization[]> {
  let query = db
    .selectFrom('organizations')
    .select(columns)
    .orderBy('id', 'desc')
    .limit(page.limit + 1);
  if (page.before !== undefined) query = query.where('id', '<', page.before);
  return query.execute();
}

/**
 * Locks an organization for a change of it or of its default row. Does not block changes of partners. Waits for the
 * transactions that share the lock now; later ones wait for this one.
 */
export async function lockOrganization(tx: Tx, id: string): Promise<Organization> {
  const query = selectOrganization(tx, id).where(isHeld('pg_advisory_xact_lock', id));
  return requireFound(await query.forNoKeyUpdate().executeTakeFirst(), 'organization');
}

/** Locks the organization's settings against changes until the commit. */
export async function lockOrganizationShared(tx: Tx, id: OrganizationId): Promise<Organization> {
  const query = selectOrganization(tx, id).where(isHeld('pg_advisory_xact_lock_shared', id));
  return requireFound(await query.forShare().executeTakeFirst(), 'organization');
}

/**
 * Takes an advisory lock in the same statement, because row locks are not fair: transactions that share a row's lock,
 * one beginning before the other ends, would keep a change of the organization waiting without limit.
 */
function isHeld(lock: 'pg_advisory_xact_lock' | 'pg_advisory_xact_lock_shared', id: string) {
  return sql<boolean>`(select ${sql.raw(lock)}(hashtext('latchkey organization'), hashtext(${id}))) is not null`;
}

export async function insertOrganization(tx: Tx, organization: Organization): Promise<void> {
  await tx
    .insertInto('organizations')
    .values({ ...organization, created_by: JSON.stringify(organization.created_by) })
    .execute();
}

export async function updateOrganization(
  tx: Tx,
  id: OrganizationId,
  fields: Partial<Omit<Organization, 'id' | 'created_at' | 'created_by'>>,
): Promise<void> {
  await tx.updateTable('organizations').set(fields).where('id', '=', id).execute();
}

/**
 * Deletes at most `count` sealed values in organizations with `keyReveal: "never"`.
 * @param id null for all organizations
 * @returns how many
 */
export async function wipeUnwantedSeals(tx: Tx, id: OrganizationId | null, count: number): Promise<number> {
  const unwanted = tx
    .selectFrom('api_keys')
    .innerJoin('organizations', 'organizations.id', 'api_keys.organization_id')
    .select('api_keys.id')
    .where('organizations.key_reveal', '=', 'never')
    .where('api_keys.sealed', 'is not', null)
    .$if(id !== null, (query) => query.where('organizations.id', '=', id as OrganizationId))
    .orderBy('api_keys.id')
    .limit(count)
    .forNoKeyUpdate('api_keys');
  const { numUpdatedRows } = await tx
    .updateTable('api_keys')
    .set({ sealed: null, sealed_keyring_id: null })
    .where('id', 'in', unwanted)
    .executeTakeFirstOrThrow();
  return Number(numUpdatedRows);
}
