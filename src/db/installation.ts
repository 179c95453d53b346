import { sql } from 'kysely';
import type { Keyring } from '../crypto/keyring.ts';
import type { Db } from './client.ts';

/** The configuration belongs to another installation than the database. The message says what to do. */
export class InstallationMismatch extends Error {
  override readonly name = 'InstallationMismatch';
}

/**
 * On the first start writes down what must never change silently, on every later one holds the configuration against it:
 * the tokens' prefix, and for each keyring entry a value that only the same bytes give.
 * @throws InstallationMismatch
 */
export async function confirmInstallation(
  db: Db,
  { tokenPrefix, keyring }: { tokenPrefix: string; keyring: Keyring },
): Promise<void> {
  await db
    .insertInto('installation')
    .values({ token_prefix: tokenPrefix })
    .onConflict((conflict) => conflict.doNothing())
    .execute();
  const { token_prefix: known } = await db.selectFrom('installation').select('token_prefix').executeTakeFirstOrThrow();
  if (known !== tokenPrefix) {
    throw new InstallationMismatch(
      `TOKEN_PREFIX is ${tokenPrefix}, but this installation's tokens begin with ${known}. Set TOKEN_PREFIX=${known}.`,
    );
  }
  await db
    .insertInto('keyring_entries')
    .values(keyring.entries.map((entry) => ({ id: entry.id, check_value: entry.checkValue })))
    .onConflict((conflict) => conflict.doNothing())
    .execute();
  const checkValues = await db.selectFrom('keyring_entries').select(['id', 'check_value']).execute();
  for (const { id, check_value: checkValue } of checkValues) {
    const entry = keyring.get(id);
    if (entry === undefined || entry.checkValue.equals(checkValue)) continue;
    throw new InstallationMismatch(
      `The keyring's entry ${id} has other bytes than the one of the same id that this database has been used with. ` +
        'Restore the right keyring; for a new secret use a new id.',
    );
  }
}

/** Ids of keyring entries that keys, or secrets of webhooks, were sealed under and that this keyring lacks. */
export async function unknownKeyringIds(db: Db, keyring: Keyring): Promise<string[]> {
  const { rows } = await sql<{ id: string }>`
    select sealed_keyring_id as id from api_keys where sealed_keyring_id is not null
    union
    select sealed_keyring_id from webhook_endpoints where sealed_keyring_id is not null
    union
    select previous_sealed_keyring_id from webhook_endpoints where previous_sealed_keyring_id is not null
    order by id`.execute(db);
  return rows.map(({ id }) => id).filter((id) => keyring.get(id) === undefined);
}
