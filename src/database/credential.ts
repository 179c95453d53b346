import { sql } from 'kysely';
import type { Actor } from '../domain/actor.ts';
import { Problem } from '../domain/errors.ts';
import { type AccessTokenId, isId, type OrganizationId } from '../domain/ids.ts';
import type { Db, Tx } from './client.ts';
import type { DatabaseClock } from './clock.ts';

/** The caller's access token, as it is at the start of a transaction. */
interface Credential {
  role: string;
  organization_id: OrganizationId | null;
  expires_at: Date | null;
  deleted_at: Date | null;
}

/**
 * Locks the caller's access token until the transaction ends, so that its deletion waits for it, and reads the
 * database's time (whole milliseconds) in the same statement. Callers of an identity provider and the system have no
 * access token.
 * @throws Problem `unauthorized`, `token_expired` if the token changed since the request was authenticated
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
  if (
    found === undefined ||
    found.deleted_at !== null ||
    found.role !== role ||
    !isValidFor(found, by.organizationId)
  ) {
    throw refused('unauthorized', 'The credential is unknown, wrong or revoked.');
  }
  if (found.expires_at !== null && found.expires_at <= found.now) {
    throw refused('token_expired', `The credential expired at ${found.expires_at.toISOString()}.`);
  }
  return found.now;
}

function isValidFor({ organization_id: own }: Credential, organizationId: OrganizationId | null): boolean {
  return own === null || own === organizationId;
}

function refused(code: 'unauthorized' | 'token_expired', detail: string): Problem {
  const challenge = `Bearer realm="latchkey", error="invalid_token", error_description="${detail}"`;
  return new Problem(code, detail, { headers: { 'www-authenticate': challenge } });
}

/**
 * Waits until no transaction is running in which this access token acts, and keeps others from starting. Called before
 * the token is deleted.
 */
export async function stopCredential(tx: Tx, id: AccessTokenId): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtext('latchkey credential'), hashtext(${id}))`.execute(tx);
}

/** The database's time in whole milliseconds, for writes that have no caller. */
export async function currentTime(db: Db, clock: DatabaseClock): Promise<Date> {
  const { rows } = await sql<{ now: Date }>`select ${clock.sqlNow} as now`.execute(db);
  if (rows[0] === undefined) throw new Error('a select without a table returned no row');
  return rows[0].now;
}
