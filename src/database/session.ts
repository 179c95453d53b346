import type pg from 'pg';

/**
 * A replica that hangs, or whose machine or network is lost, may leave a transaction open. Without this limit its locks
 * would block an organization until TCP gives up, which takes hours.
 */
export const idleTransactionLimitMs = 15_000;

/** Settings that Latchkey relies on and that `alter role … set` or `alter database … set` can change. */
const settings: Record<string, string> = {
  search_path: 'public, pg_temp',
  statement_timeout: '0',
  lock_timeout: '0',
  idle_in_transaction_session_timeout: String(idleTransactionLimitMs),
  idle_session_timeout: '0',
  client_encoding: "'UTF8'",
  standard_conforming_strings: 'on',
  timezone: "'UTC'",
  datestyle: "'ISO, MDY'",
  intervalstyle: "'postgres'",
  bytea_output: "'hex'",
  extra_float_digits: '1',
  array_nulls: 'on',
  transform_null_equals: 'off',
  default_transaction_isolation: "'read committed'",
  default_transaction_read_only: 'off',
  default_transaction_deferrable: 'off',
  row_security: 'on',
  exit_on_error: 'off',
  'plpgsql.extra_errors': "'none'",
};

/** Settings that exist only in some supported releases of Postgres. */
const newerSettings: Record<string, string> = { transaction_timeout: '0', restrict_nonsystem_relation_kind: '' };

// Sent in one message. The search path comes first, so that the rest cannot call functions of another schema.
const statements = [
  ...Object.entries(settings).map(([name, value]) => `set ${name} = ${value}`),
  ...Object.entries(newerSettings).map(
    ([name, value]) => `select set_config(name, '${value}', false) from pg_settings where name = '${name}'`,
  ),
].join('; ');

/**
 * Sets the settings of a session. Every connection runs this first. It is a statement and not a startup option, because
 * poolers reject options.
 */
export async function prepareSession(client: pg.ClientBase): Promise<void> {
  await client.query(statements);
}

/** Whether every session of Latchkey sets this setting. @param name in any case */
export function isSetBySession(name: string): boolean {
  const known = name.toLowerCase();
  return known in settings || known in newerSettings;
}
