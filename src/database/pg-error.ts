import pg from 'pg';
import { Problem } from '../domain/errors.ts';
import { PoolUsedUp } from './client.ts';
import { isConnectionLoss } from './pg-internals.ts';

/** SQLSTATE codes: https://www.postgresql.org/docs/current/errcodes-appendix.html */
const serializationFailure = '40001';
const deadlockDetected = '40P01';
const insufficientPrivilege = '42501';

/** Worth another try at once: the whole transaction was rolled back for no fault of its own. */
export function isTransient(error: unknown): boolean {
  return error instanceof pg.DatabaseError && (error.code === serializationFailure || error.code === deadlockDetected);
}

/** Classes 21 cardinality violation, 22 data exception, 23 integrity constraint violation, 54 program limit exceeded. */
const rejectedClass = /^(21|22|23|54)/;

/**
 * Whether what was written is at fault, so that the same would be rejected again: by the database, or by this program
 * before it was sent (a date that is none).
 */
export function isRejection(error: unknown): boolean {
  if (error instanceof pg.DatabaseError) return error.code !== undefined && rejectedClass.test(error.code);
  return error instanceof RangeError || error instanceof TypeError;
}

/** The name of the constraint or unique index that refused a row; undefined for other errors. */
export function violatedConstraint(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError && error.code?.startsWith('23') ? error.constraint : undefined;
}

/** The rules that the database enforces itself, as problems. A race that the code did not see ends here. */
const problemOfConstraint: Record<string, () => Problem> = {
  api_keys_live_slot: () => new Problem('row_full', 'The row already holds two live keys. Delete one of them first.'),
  partners_live_email: () =>
    new Problem('partner_exists', 'The organization already has a live partner with this e-mail address.'),
  recovery_requests_open_key: () => new Problem('conflict', 'A recovery request about this key is still open.'),
  recovery_requests_open_partner: () => new Problem('conflict', 'A recovery request about this partner is still open.'),
};

const networkCodes = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
]);

/** Node's and OpenSSL's codes for a handshake that ended without trust. */
const tlsCode = /^(ERR_TLS_|ERR_SSL_|CERT_|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_)/;

/** Classes 08 connection exception, 53 insufficient resources, 57 operator intervention, 58 system error. */
const unavailableClass = /^(08|53|57|58)/;

/** Which function of Postgres rejects `begin … read write` on a standby, by a code that says no more than "not supported". */
const rejectsReadWrite = 'call_bool_check_hook';

/** Whether a standby, or another database that takes no writes, has rejected a statement. */
export function isReadOnlyRefusal(error: unknown): boolean {
  if (!(error instanceof pg.DatabaseError)) return false;
  return error.code === '25006' || (error.code === '0A000' && error.routine === rejectsReadWrite);
}

/** True where Postgres could not be reached, or would not or could not serve: the caller may try again later. */
export function isUnavailable(error: unknown): boolean {
  if (error instanceof PoolUsedUp) return true;
  if (error instanceof AggregateError) return error.errors.every(isUnavailable);
  if (!(error instanceof Error)) return false;
  if (isReadOnlyRefusal(error)) return true;
  if (error instanceof pg.DatabaseError) return error.code !== undefined && unavailableClass.test(error.code);
  const { code } = error as NodeJS.ErrnoException;
  if (code !== undefined && (networkCodes.has(code) || tlsCode.test(code))) return true;
  return isConnectionLoss(error);
}

/**
 * A database error as the problem that callers see; undefined where it is none of theirs and stays `internal`.
 * A missing privilege is `unavailable`: it is how a database refuses to record, and nothing has happened then.
 */
export function toProblem(error: unknown): Problem | undefined {
  if (error instanceof PoolUsedUp) {
    return new Problem('overloaded', 'Too many requests are waiting for a connection to the database.', {
      cause: error,
    });
  }
  const constraint = violatedConstraint(error);
  if (constraint !== undefined) return problemOfConstraint[constraint]?.();
  const refused = error instanceof pg.DatabaseError && error.code === insufficientPrivilege;
  if (refused || isTransient(error) || isUnavailable(error)) {
    const detail = isReadOnlyRefusal(error)
      ? 'The database is a read-only standby, so nothing can be changed.'
      : 'The database did not do, or did not confirm, what was asked.';
    return new Problem('unavailable', detail, {
      cause: error,
      headers: { 'retry-after': '1' },
    });
  }
  return undefined;
}
