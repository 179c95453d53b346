import pg from 'pg';
import { Problem } from '../domain/errors.ts';
import { PoolUsedUp } from './client.ts';
import { isConnectionLoss } from './pg-internals.ts';

/** SQLSTATE codes: https://www.postgresql.org/docs/current/errcodes-appendix.html */
const serializationFailure = '40001';
const deadlockDetected = '40P01';
const insufficientPrivilege = '42501';
const lockNotAvailable = '55P03';

/** Errors after which the whole transaction was rolled back and can be retried at once. */
export function isTransient(error: unknown): boolean {
  return error instanceof pg.DatabaseError && (error.code === serializationFailure || error.code === deadlockDetected);
}

/** Whether the role may not do what it tried. */
export function isMissingPrivilege(error: unknown): boolean {
  return error instanceof pg.DatabaseError && error.code === insufficientPrivilege;
}

/** Whether a statement waited for a lock longer than `lock_timeout`. */
export function isLockTimeout(error: unknown): boolean {
  return error instanceof pg.DatabaseError && error.code === lockNotAvailable;
}

/** Classes 21 cardinality violation, 22 data exception, 23 integrity constraint violation, 54 program limit exceeded. */
const rejectedClass = /^(21|22|23|54)/;

/**
 * Whether the written values are at fault, so that a retry would fail again. The database rejected them, or this
 * program could not encode them (such as an invalid date).
 */
export function isRejection(error: unknown): boolean {
  if (error instanceof pg.DatabaseError) return error.code !== undefined && rejectedClass.test(error.code);
  return error instanceof RangeError || error instanceof TypeError;
}

/** The name of the violated constraint or unique index; undefined for other errors. */
export function violatedConstraint(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError && error.code?.startsWith('23') ? error.constraint : undefined;
}

/** The database's own rules, as problems. They catch races that the code does not see. */
const problemOfConstraint: Record<string, () => Problem> = {
  api_keys_live_slot: () => new Problem('row_full', 'The row already holds two live keys. Delete one of them first.'),
  partners_live_email: () =>
    new Problem('partner_exists', 'The organization already has a live partner with this e-mail address.'),
  partners_live_external_id: () =>
    new Problem('external_id_exists', 'The organization already has a live partner with this externalId.'),
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

/** Codes of Node and OpenSSL for a TLS handshake without trust. */
const tlsCode = /^(ERR_TLS_|ERR_SSL_|CERT_|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_)/;

/** Classes 08 connection exception, 53 insufficient resources, 57 operator intervention, 58 system error. */
const unavailableClass = /^(08|53|57|58)/;

/**
 * The function of Postgres that rejects `begin … read write` on a standby. The SQLSTATE alone only says "not
 * supported".
 */
const rejectsReadWrite = 'call_bool_check_hook';

/** Whether a statement was rejected because the database is a standby or accepts no writes. */
export function isReadOnlyRefusal(error: unknown): boolean {
  if (!(error instanceof pg.DatabaseError)) return false;
  return error.code === '25006' || (error.code === '0A000' && error.routine === rejectsReadWrite);
}

/** Whether Postgres could not be reached or could not serve, so that the caller may retry later. */
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
 * A database error as a problem for callers; undefined for an `internal` error. A missing privilege is `unavailable`:
 * the database did not record the change, so nothing happened.
 */
export function toProblem(error: unknown): Problem | undefined {
  if (error instanceof PoolUsedUp) {
    return new Problem('overloaded', 'Too many requests are waiting for a connection to the database.', {
      cause: error,
    });
  }
  const constraint = violatedConstraint(error);
  if (constraint !== undefined) return problemOfConstraint[constraint]?.();
  if (isMissingPrivilege(error) || isTransient(error) || isUnavailable(error)) {
    const detail = isReadOnlyRefusal(error)
      ? 'The database is a read-only standby, so nothing can be changed.'
      : 'The database did not execute or confirm the request.';
    return new Problem('unavailable', detail, {
      cause: error,
      headers: { 'retry-after': '1' },
    });
  }
  return undefined;
}
