import { sql } from 'kysely';
import type { Db } from '../database/client.ts';
import type { OrganizationId, PartnerId } from '../domain/ids.ts';
import type { Access } from '../domain/permissions.ts';

/** A partner's row: the partner and one of its permissions. */
export interface PartnerRow {
  partnerId: PartnerId;
  partnerEmail: string;
  permission: Access;
}

/** The position of a partner's row in the list: partners newest first, read before write. */
export type RowPosition = Pick<PartnerRow, 'partnerId' | 'permission'>;

export async function listPartnerRows(
  db: Db,
  organizationId: OrganizationId,
  page: { count: number; after: RowPosition | undefined },
): Promise<PartnerRow[]> {
  const { after } = page;
  const beyond =
    after === undefined
      ? sql`true`
      : sql`(partner.id < ${after.partnerId} or (partner.id = ${after.partnerId} and granted.permission > ${after.permission}))`;
  const { rows } = await sql<PartnerRow>`
    select partner.id as "partnerId", partner.email as "partnerEmail", granted.permission
    from partners as partner cross join lateral unnest(partner.permissions) as granted (permission)
    where partner.organization_id = ${organizationId} and partner.deleted_at is null and ${beyond}
    order by partner.id desc, granted.permission
    limit ${page.count}`.execute(db);
  return rows;
}
