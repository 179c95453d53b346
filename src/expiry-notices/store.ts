import { sql } from 'kysely';
import type { Db, Tx } from '../database/client.ts';
import type { AccessTokenId, KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';

/** The tables whose rows expire. */
export type ExpiringTable = 'api_keys' | 'access_tokens';

/** A row of each table whose expiry is due to be announced. */
export interface Expiring {
  api_keys: DueNotice & { id: KeyId; partner_id: PartnerId | null };
  access_tokens: DueNotice & { id: AccessTokenId; role: string; name: string; email: string | null };
}

interface DueNotice {
  expires_at: Date;
  days_ahead: 7 | 1;
}

const shownColumns = { api_keys: ['partner_id'], access_tokens: ['role', 'name', 'email'] } as const;

/** The due notice. Measured in hours, because a day does not always have 24. */
const dueNotice = (now: Date) =>
  sql<7 | 1>`case when credential.expires_at <= ${now}::timestamptz + interval '24 hours' then 1 else 7 end`;

/** Live rows that expire within seven days and have no notice yet, or only an earlier one. */
const isAnnounceable = (now: Date) => sql<boolean>`
  deleted_at is null and expires_at > ${now} and expires_at <= ${now}::timestamptz + interval '168 hours'
  and not exists (
    select from expiry_notices as notice
    where notice.credential_id = credential.id and notice.expires_at = credential.expires_at
      and notice.days_ahead <= ${dueNotice(now)}
  )`;

/** Null is the installation, whose operators have access tokens too. */
export async function organizationsWithExpiries(
  db: Db,
  table: ExpiringTable,
  now: Date,
): Promise<Array<OrganizationId | null>> {
  const { rows } = await sql<{ organization_id: OrganizationId | null }>`
    select distinct organization_id from ${sql.table(table)} as credential where ${isAnnounceable(now)}`.execute(db);
  return rows.map((row) => row.organization_id);
}

/** Skips locked rows until the next run. */
export async function lockExpiring<Table extends ExpiringTable>(
  tx: Tx,
  table: Table,
  organizationId: OrganizationId | null,
  now: Date,
  count: number,
): Promise<Array<Expiring[Table]>> {
  const isIn = organizationId === null ? sql`organization_id is null` : sql`organization_id = ${organizationId}`;
  const columns = sql.join(shownColumns[table].map((column) => sql.ref(column)));
  const { rows } = await sql<Expiring[Table]>`
    select id, expires_at, ${dueNotice(now)} as days_ahead, ${columns} from ${sql.table(table)} as credential
    where ${isIn} and ${isAnnounceable(now)}
    order by id limit ${count} for no key update skip locked`.execute(tx);
  return rows;
}

/** @returns the rows that no other run has announced meanwhile */
export async function insertExpiryNotices<Due extends Expiring[ExpiringTable]>(
  tx: Tx,
  due: readonly Due[],
): Promise<Due[]> {
  if (due.length === 0) return [];
  const claimed = await tx
    .insertInto('expiry_notices')
    .values(due.map(({ id, expires_at, days_ahead }) => ({ credential_id: id, expires_at, days_ahead })))
    .onConflict((conflict) => conflict.doNothing())
    .returning('credential_id')
    .execute();
  const ids = new Set<string>(claimed.map((row) => row.credential_id));
  return due.filter(({ id }) => ids.has(id));
}

export async function deleteExpiryNotices(db: Db, expiredBefore: Date): Promise<number> {
  const { numDeletedRows } = await db
    .deleteFrom('expiry_notices')
    .where('expires_at', '<', expiredBefore)
    .executeTakeFirstOrThrow();
  return Number(numDeletedRows);
}
