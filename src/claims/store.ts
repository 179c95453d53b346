import { type Selectable, sql } from 'kysely';
import { claimMacColumns } from '../credentials/record-mac.ts';
import type { MacColumns } from '../crypto/mac.ts';
import type { Db, Tx } from '../database/client.ts';
import type { ClaimEnd, ClaimsTable } from '../database/tables/claims.ts';
import { requireFound } from '../domain/errors.ts';
import type { ClaimId, KeyId, OrganizationId, PartnerId } from '../domain/ids.ts';
import { chainOf } from '../history/chain.ts';
import { matches } from '../history/store.ts';
import type { ClaimStatus } from './policy.ts';

/** A claim without its secrets and their protection. */
export type Claim = Omit<Selectable<ClaimsTable>, 'code_hash' | keyof ProtectedColumns>;

/** The columns that only a holder of the keyring can write. */
export interface ProtectedColumns extends MacColumns {
  sealed: Buffer;
  sealed_keyring_id: string;
}

const columns = [
  'id',
  'organization_id',
  'partner_id',
  'key_id',
  'expires_at',
  'created_at',
  'created_by',
  'ended_at',
  'end_reason',
  'redeemed_from',
] as const;

/** @throws Problem `not_found` */
export async function getClaim(db: Db, organizationId: OrganizationId, id: string): Promise<Claim> {
  return requireFound(await selectClaim(db, organizationId, id).executeTakeFirst(), 'claim in this organization');
}

/** @throws Problem `not_found` */
export async function lockClaim(tx: Tx, organizationId: OrganizationId, id: string): Promise<Claim> {
  const query = selectClaim(tx, organizationId, id).forNoKeyUpdate();
  return requireFound(await query.executeTakeFirst(), 'claim in this organization');
}

function selectClaim(db: Db, organizationId: OrganizationId, id: string) {
  return db
    .selectFrom('claims')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('id', '=', id as ClaimId);
}

export interface ClaimFilter {
  status?: ClaimStatus | undefined;
  keyId?: KeyId | undefined;
  partnerId?: PartnerId | undefined;
}

/** Newest first, up to `limit + 1`. */
export async function listClaims(
  db: Db,
  organizationId: OrganizationId,
  filter: ClaimFilter,
  page: { limit: number; before: ClaimId | undefined; now: Date },
): Promise<Claim[]> {
  let query = db
    .selectFrom('claims')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where(statusCondition(filter.status, page.now))
    .orderBy('id', 'desc')
    .limit(page.limit + 1);
  if (page.before !== undefined) query = query.where('id', '<', page.before);
  if (filter.keyId !== undefined) query = query.where('key_id', '=', filter.keyId);
  if (filter.partnerId !== undefined) query = query.where('partner_id', '=', filter.partnerId);
  return query.execute();
}

/** The rule of `statusOf` in policy.ts as SQL. */
function statusCondition(status: ClaimStatus | undefined, now: Date) {
  switch (status) {
    case undefined:
      return sql<boolean>`true`;
    case 'pending':
      return sql<boolean>`ended_at is null and expires_at > ${now}`;
    case 'expired':
      return sql<boolean>`(end_reason = 'expired' or (ended_at is null and expires_at <= ${now}))`;
    default:
      return sql<boolean>`end_reason = ${status}`;
  }
}

/** A claim as its redemption needs it. After its end the secrets are null. */
export type SecretClaim = Pick<
  Selectable<ClaimsTable>,
  (typeof claimMacColumns)[number] | keyof MacColumns | 'end_reason'
>;

/** In any organization: the code is the only thing that its holder has. */
export async function findSecretClaim(db: Db, id: ClaimId): Promise<SecretClaim | undefined> {
  return selectSecret(db, id).executeTakeFirst();
}

export async function lockSecretClaim(tx: Tx, id: ClaimId): Promise<SecretClaim | undefined> {
  return selectSecret(tx, id).forNoKeyUpdate().executeTakeFirst();
}

function selectSecret(db: Db, id: ClaimId) {
  return db
    .selectFrom('claims')
    .select([...claimMacColumns, 'mac', 'mac_keyring_id', 'end_reason'])
    .where('id', '=', id);
}

const endActions = ['key.claimed', 'claim.cancelled', 'claim.expired'];

/** Whether history has the end of this claim. Without the keyring, nobody can set that back; a row can be. */
export async function isEndRecorded(
  db: Db,
  claim: { id: ClaimId; organization_id: OrganizationId; key_id: KeyId },
): Promise<boolean> {
  const chain = chainOf(claim.organization_id);
  const ends = endActions.map((action) =>
    matches(chain, [
      ['key_id', claim.key_id],
      ['action', action],
    ]),
  );
  const { rows } = await sql<{ found: boolean }>`
    select exists (
      select from history where (${sql.join(ends, sql` or `)})
        and canonical::jsonb -> 'details' ->> 'claimId' = ${claim.id}
    ) as found`.execute(db);
  return rows[0]?.found === true;
}

export type NewClaim = Omit<Claim, 'ended_at' | 'end_reason' | 'redeemed_from'> & {
  code_hash: Buffer;
} & ProtectedColumns;

export async function insertClaim(tx: Tx, claim: NewClaim): Promise<Claim> {
  return tx
    .insertInto('claims')
    .values({ ...claim, created_by: JSON.stringify(claim.created_by) })
    .returning(columns)
    .executeTakeFirstOrThrow();
}

/** The claims of these keys that have not ended yet, locked. Lock the keys first. */
export async function lockOpenClaimsOfKeys(tx: Tx, keyIds: readonly KeyId[]): Promise<Claim[]> {
  if (keyIds.length === 0) return [];
  return tx
    .selectFrom('claims')
    .select(columns)
    .where('key_id', 'in', keyIds)
    .where('ended_at', 'is', null)
    .orderBy('id')
    .forNoKeyUpdate()
    .execute();
}

/** Ends locked claims and deletes their secrets. */
export async function markEnded(
  tx: Tx,
  id: ClaimId,
  end: { at: Date; reason: ClaimEnd; redeemedFrom?: string },
): Promise<Claim> {
  return tx
    .updateTable('claims')
    .set({
      ended_at: end.at,
      end_reason: end.reason,
      redeemed_from: end.redeemedFrom ?? null,
      code_hash: null,
      sealed: null,
      sealed_keyring_id: null,
      mac: null,
      mac_keyring_id: null,
    })
    .where('id', '=', id)
    .returning(columns)
    .executeTakeFirstOrThrow();
}

export async function organizationsWithExpiredClaims(db: Db, now: Date): Promise<OrganizationId[]> {
  const rows = await db
    .selectFrom('claims')
    .select('organization_id')
    .distinct()
    .where('ended_at', 'is', null)
    .where('expires_at', '<=', now)
    .execute();
  return rows.map((row) => row.organization_id);
}

/** Skips locked claims until the next run: they are ending already. */
export async function lockExpiredClaims(
  tx: Tx,
  organizationId: OrganizationId,
  now: Date,
  count: number,
): Promise<Claim[]> {
  return tx
    .selectFrom('claims')
    .select(columns)
    .where('organization_id', '=', organizationId)
    .where('ended_at', 'is', null)
    .where('expires_at', '<=', now)
    .orderBy('id')
    .limit(count)
    .forNoKeyUpdate()
    .skipLocked()
    .execute();
}
