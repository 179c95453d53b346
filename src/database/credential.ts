import { sql } from 'kysely';
import type { Actor } from '../domain/actor.ts';
import { Problem } from '../domain/errors.ts';
import { type AccessTokenId, isId, type OrganizationId } from '../domain/ids.ts';
import type { Db, Tx } from './client.ts';
import type { DatabaseClock } from './clock.ts';

/** The access token that somebody acts by, as it is at the beginning of a transaction. */
interface Credential {
  role: string;
  organization_id: OrganizationId | null;
  expires_at: Date | null;
  deleted_at: Date | null;
}

/**
 * The database's time in whole milliseconds, in one statement with a look at the access token of who acts: it is held until
 * the transaction ends, and a deletion of it waits for that. Persons from an identity provider and the system have none.
 * @throws Problem `unauthorized`, `token_expired` where the token no longer is what it was when the request was let in
 */
export async function beginAs(
  db: Db,
  by: { actor: Actor; organizationId: OrganizationId | null },
  clock: DatabaseClock,
): Promise<Date> {
  const { type: role, id } = by.actor;
  if (!isId('token', id)) return currentTime(db, clock);
  const { rows } = await sql<Credential & { now: Date }>`
    select ${clock.sqlNow} as now, role, organization_id, expires_at, deleted_at
    from hold_credential(${id})`.execute(db);
  const [found] = rows;
  if (found === undefined || found.deleted_at !== null || found.role !== role || !mayActIn(found, by.organizationId)) {
    throw refused('unauthorized', 'The credential is unknown, wrong or revoked.');
  }
  if (found.expires_at !== null && found.expires_at <= found.now) {
    throw refused('token_expired', `The credential expired at ${found.expires_at.toISOString()}.`);
  }
  return found.now;
}

function mayActIn({ organization_id: own }: Credential, organizationId: OrganizationId | null): boolean {
  return own === null || own === organizationId;
}

function refused(code: 'unauthorized' | 'token_expired', detail: string): Problem {
  const challenge = `Bearer realm="latchkey", error="invalid_token", error_description="${detail}"`;
  return new Problem(code, detail, { headers: { 'www-authenticate': challenge } });
}

/**
 * Waits until no transaction is under way in which this access token acts, and keeps others from beginning. Called
 * before the token is deleted.
 */
export async function stopCredential(tx: Tx, id: AccessTokenId): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtext('latchkey credential'), hashtext(${id}))`.execute(tx);
}

/** The database's time in whole milliseconds: for what is stored or removed by it. */
export async function currentTime(db: Db, clock: DatabaseClock): Promise<Date> {
  const { rows } = await sql<{ now: Date }>`select ${clock.sqlNow} as now`.execute(db);
  if (rows[0] === undefined) throw new Error('a select without a table returned no row');
  return rows[0].now;
}
