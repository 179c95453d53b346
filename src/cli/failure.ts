import pg from 'pg';
import { ReadOnlyDatabase } from '../database/fitness.ts';
import { isMissingPrivilege, isReadOnlyRefusal, isUnavailable } from '../database/pg-error.ts';

/** Describes an error for the user of a command, with a remedy if one is known. */
export function describeFailure(error: unknown, env: NodeJS.ProcessEnv): string {
  const message = messageOf(error);
  if (isReadOnlyRefusal(error)) return new ReadOnlyDatabase().message;
  if ((error as NodeJS.ErrnoException | undefined)?.code === 'EADDRINUSE') {
    return `${message}. Stop the program that uses this port, or set another one (PORT, METRICS_PORT).`;
  }
  if (isMissingPrivilege(error)) {
    return (
      `${message}. Set MIGRATION_DATABASE_URL to the URL of the role that owns the database, and run \`latchkey migrate\`: it also ` +
      "grants the service's role its rights."
    );
  }
  const urls = urlVariables.filter((name) => env[name] || env[`${name}_FILE`]).join(' or ');
  if (urls === '') {
    if (!isUnavailable(error)) return message;
    return `The database cannot be reached: ${message}. ${embeddedHint}`;
  }
  const remedy = connectionRemedy(error, urls);
  if (remedy === undefined && !isUnavailable(error)) return message;
  return `The database cannot be reached: ${message}. ${remedy ?? `Is Postgres running, and does ${urls} point to it?`}`;
}

const urlVariables = ['DATABASE_URL', 'MIGRATION_DATABASE_URL', 'LISTEN_DATABASE_URL'];

const embeddedHint =
  'DATABASE_URL is not set, so the embedded database is used. It runs only while Latchkey runs: start Latchkey (`npm start`), then run this command again.';

/** A remedy for a connection error that names its cause. @param urls the variables that name the database */
function connectionRemedy(error: unknown, urls: string): string | undefined {
  const { code = '', hostname, message = '' } = error as NodeJS.ErrnoException & { hostname?: string };
  if (code === 'ENOTFOUND' && hostname !== undefined) {
    return `Is ${hostname} the host in ${urls}? In a password @ : / ? # % must be percent-encoded (@ is %40).`;
  }
  if (/^(SELF_SIGNED_|DEPTH_ZERO_|UNABLE_TO_)/.test(code)) {
    return (
      "The certificate authority of Postgres is unknown here: set the file with the authority's certificate in " +
      `PGSSLROOTCERT, or as sslrootcert= in ${urls}. Managed databases offer it for download.`
    );
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return `The certificate of Postgres is for another host: use a host name of the certificate in ${urls}.`;
  }
  if (code === 'CERT_HAS_EXPIRED') return 'The certificate of Postgres has expired: replace it on the server.';
  if (/does not support SSL/.test(message)) {
    return `This Postgres does not support TLS: set ssl = on on the server, or sslmode=disable in ${urls}.`;
  }
  if (!(error instanceof pg.DatabaseError)) return undefined;
  if (/no encryption|SSL off/.test(message)) return `This Postgres requires TLS: add sslmode=verify-full to ${urls}.`;
  if (code === '28P01') {
    return `Is the password in ${urls} correct? In it @ : / ? # % must be percent-encoded (@ is %40).`;
  }
  if (code === '3D000') return `Is its name in ${urls} correct? docs/install.md says how to create it.`;
  return undefined;
}

/**
 * The message of an error, or of its cause: an AggregateError's message may be empty, and fetch only says `fetch
 * failed`.
 */
export function messageOf(error: unknown): string {
  if (error instanceof AggregateError && error.message === '') return error.errors.map(messageOf).join(', ');
  if (error instanceof TypeError && error.cause instanceof Error) return messageOf(error.cause);
  return error instanceof Error ? error.message : String(error);
}
