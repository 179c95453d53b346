import pg from 'pg';
import { ReadOnlyDatabase } from '../database/fitness.ts';
import { isReadOnlyRefusal, isUnavailable } from '../database/pg-error.ts';

/** What went wrong, for the person who ran a command, and where it helps what to do. */
export function describeFailure(error: unknown, env: NodeJS.ProcessEnv): string {
  const message = messageOf(error);
  if (isReadOnlyRefusal(error)) return new ReadOnlyDatabase().message;
  const urls = urlVariables.filter((name) => env[name] || env[`${name}_FILE`]).join(' or ');
  if (urls === '') {
    if (!isUnavailable(error)) return message;
    return `The database cannot be reached: ${message}. ${embeddedHint}`;
  }
  const remedy = connectionRemedy(error, urls);
  if (remedy === undefined && !isUnavailable(error)) return message;
  return `The database cannot be reached: ${message}. ${remedy ?? `Does Postgres run, and does ${urls} lead to it?`}`;
}

const urlVariables = ['DATABASE_URL', 'MIGRATION_DATABASE_URL', 'LISTEN_DATABASE_URL'];

const embeddedHint =
  'DATABASE_URL is not set, so this is about the embedded database, which runs only while Latchkey does: start Latchkey (`npm start`), and run this again beside it.';

/** What to change where the error says more than that nobody answers. @param urls the variables that name the database */
function connectionRemedy(error: unknown, urls: string): string | undefined {
  const { code = '', hostname, message = '' } = error as NodeJS.ErrnoException & { hostname?: string };
  if (code === 'ENOTFOUND' && hostname !== undefined) {
    return `Is ${hostname} the host that ${urls} should name? In a password @ : / ? # % must be percent-encoded (@ is %40).`;
  }
  if (/^(SELF_SIGNED_|DEPTH_ZERO_|UNABLE_TO_)/.test(code)) {
    return (
      'The authority that signed the certificate of Postgres is not known here: name the file with its certificate in ' +
      `PGSSLROOTCERT, or by sslrootcert= in ${urls}. Managed databases offer it for download.`
    );
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return `The certificate of Postgres is for another host: ${urls} must name one that is in it.`;
  }
  if (code === 'CERT_HAS_EXPIRED') return 'The certificate of Postgres has expired: replace it there.';
  if (/does not support SSL/.test(message)) {
    return `This Postgres offers no TLS: set ssl = on there, or sslmode=disable in ${urls}.`;
  }
  if (!(error instanceof pg.DatabaseError)) return undefined;
  if (/no encryption|SSL off/.test(message)) return `This Postgres asks for TLS: add sslmode=verify-full to ${urls}.`;
  if (code === '28P01') {
    return `Is the password in ${urls} right? In it @ : / ? # % must be percent-encoded (@ is %40).`;
  }
  return undefined;
}

/** Of some errors only what is behind them says something: an AggregateError's message is empty, and `fetch failed` is all that fetch says. */
export function messageOf(error: unknown): string {
  if (error instanceof AggregateError && error.message === '') return error.errors.map(messageOf).join(', ');
  if (error instanceof TypeError && error.cause instanceof Error) return messageOf(error.cause);
  return error instanceof Error ? error.message : String(error);
}
