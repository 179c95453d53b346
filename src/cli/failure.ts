import { ReadOnlyDatabase } from '../db/fitness.ts';
import { isReadOnlyRefusal, isUnavailable } from '../db/pg-error.ts';

/** What went wrong, for the person who ran a command, and where it helps what to do. */
export function describeFailure(error: unknown, env: NodeJS.ProcessEnv): string {
  const message = messageOf(error);
  if (isReadOnlyRefusal(error)) return new ReadOnlyDatabase().message;
  if (!isUnavailable(error)) return message;
  const isOwn = ['DATABASE_URL', 'MIGRATION_DATABASE_URL'].some((name) => env[name] || env[`${name}_FILE`]);
  const hint = isOwn
    ? 'Does Postgres run, and do DATABASE_URL and MIGRATION_DATABASE_URL lead to it?'
    : 'DATABASE_URL is not set, so this is about the embedded database, which runs only while Latchkey does: start Latchkey (`npm start`), and run this again beside it.';
  return `The database can not be reached: ${message}. ${hint}`;
}

/** Of some errors only what is behind them says something: an AggregateError's message is empty, and `fetch failed` is all that fetch says. */
export function messageOf(error: unknown): string {
  if (error instanceof AggregateError && error.message === '') return error.errors.map(messageOf).join(', ');
  if (error instanceof TypeError && error.cause instanceof Error) return messageOf(error.cause);
  return error instanceof Error ? error.message : String(error);
}
