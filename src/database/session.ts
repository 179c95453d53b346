import type pg from 'pg';

/** What `alter role … set` and `alter database … set` can change, and Latchkey relies on. */
const settings: Record<string, string> = {
  search_path: 'public, pg_temp',
  statement_timeout: '0',
  lock_timeout: '0',
  idle_in_transaction_session_timeout: '0',
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

/** Settings that only some of the supported versions have, or only some of their minor releases. */
const newerSettings: Record<string, string> = { transaction_timeout: '0', restrict_nonsystem_relation_kind: '' };

// In one message. The search path comes first: what stands after it cannot be taken for somebody else's functions.
const statements = [
  ...Object.entries(settings).map(([name, value]) => `set ${name} = ${value}`),
  ...Object.entries(newerSettings).map(
    ([name, value]) => `select set_config(name, '${value}', false) from pg_settings where name = '${name}'`,
  ),
].join('; ');

/**
 * Sets what a session's behaviour depends on. Every connection runs this before anything else. It is a statement and no
 * startup option, because poolers reject options.
 */
export async function prepareSession(client: pg.ClientBase): Promise<void> {
  await client.query(statements);
}

/** Whether every session of Latchkey's sets this for itself. @param name in any case */
export function isSetBySession(name: string): boolean {
  const known = name.toLowerCase();
  return known in settings || known in newerSettings;
}
