import type { Test } from 'tap';
import type { TestService } from './app.ts';
import { dbQuery } from './database.ts';
import { keyringText } from './keyrings.ts';
import { type RunningProcess, runEntry } from './process.ts';

/** Runs the real command, with a keyring of these entries. */
export function startRekey(t: Test, url: string, ...keyring: string[]): RunningProcess {
  const env = { DATABASE_URL: url, LATCHKEY_KEYRING: keyringText(...keyring) };
  return runEntry(t, 'cli/latchkey.ts', ['rekey'], { env });
}

export async function runRekey(t: Test, url: string, ...keyring: string[]) {
  const process = startRekey(t, url, ...keyring);
  const { code } = await process.exited;
  return { code, output: process.output(), stdout: process.stdout() };
}

/** The number of keys by the entries of their seal and tag. */
export const entriesOf = (url: string) =>
  dbQuery(
    url,
    `select coalesce(sealed_keyring_id, '-') as sealed, tag_keyring_id as tag, count(*)::int as keys
     from api_keys group by 1, 2 order by 1, 2`,
  );

/**
 * Locks a key, like a transaction that changes it. The returned function makes the change, if given, and unlocks it.
 */
export async function hold({ client }: TestService, id: string | undefined) {
  const holder = await client.pool.connect();
  await holder.query('begin');
  await holder.query('select from api_keys where id = $1 for update', [id]);
  return async (change?: string) => {
    if (change !== undefined) await holder.query(`update api_keys set ${change} where id = $1`, [id]);
    await holder.query('commit');
    holder.release();
  };
}
