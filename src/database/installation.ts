import { sql } from 'kysely';
import type { Keyring, KeyringEntry } from '../crypto/keyring.ts';
import { isAuthentic, type MacParts, macOf } from '../crypto/mac.ts';
import type { Db } from './client.ts';
import type { KeyringEntriesTable } from './tables/keyring-entries.ts';

/** The configuration belongs to another installation than the database. The message says what to do. */
export class InstallationMismatch extends Error {
  override readonly name = 'InstallationMismatch';
}

/**
 * Compares the configuration with what the first start stored: the token prefix, and a check value for each keyring
 * entry.
 * @returns ids of stored check values that were written without the keyring; they are ignored
 * @throws InstallationMismatch
 */
export async function confirmInstallation(
  db: Db,
  { tokenPrefix, keyring }: { tokenPrefix: string; keyring: Keyring },
): Promise<string[]> {
  await db
    .insertInto('installation')
    .values({ token_prefix: tokenPrefix, root_keyring_id: keyring.primary.id })
    .onConflict((conflict) => conflict.doNothing())
    .execute();
  const { token_prefix: known, root_keyring_id: rootId } = await db
    .selectFrom('installation')
    .select(['token_prefix', 'root_keyring_id'])
    .executeTakeFirstOrThrow();
  if (known !== tokenPrefix) {
    throw new InstallationMismatch(
      `TOKEN_PREFIX is ${tokenPrefix}, but this installation's tokens begin with ${known}. Set TOKEN_PREFIX=${known}.`,
    );
  }
  requireKnownEntry(await listEntries(db), keyring);
  await insertNewEntries(db, keyring);
  return requireSameEntries(await listEntries(db), keyring, rootId);
}

type StoredEntry = Pick<KeyringEntriesTable, 'id' | 'check_value' | 'mac' | 'mac_keyring_id'>;

function listEntries(db: Db): Promise<StoredEntry[]> {
  return db.selectFrom('keyring_entries').select(['id', 'check_value', 'mac', 'mac_keyring_id']).execute();
}

/** With a keyring of another installation every credential would be rejected. */
function requireKnownEntry(stored: readonly StoredEntry[], keyring: Keyring): void {
  const ids = stored.map(({ id }) => id);
  if (ids.length === 0 || ids.some((id) => keyring.get(id) !== undefined || keyring.lostIds.has(id))) return;
  throw new InstallationMismatch(
    `The keyring has none of the entries that were used with this database: ${ids.join(', ')}. Restore the right keyring. ` +
      'If it is lost for good, set LOST_KEYRING_IDS to the lost ids.',
  );
}

/** Whether the service has used this keyring's primary entry with this database. */
export async function isKeyringKnown(db: Db, keyring: Keyring): Promise<boolean> {
  return (await listEntries(db)).some((row) => isSame(row, keyring.primary));
}

/** A known entry authenticates a new one; the first one authenticates itself. */
async function insertNewEntries(db: Db, keyring: Keyring): Promise<void> {
  const stored = await listEntries(db);
  const voucher = keyring.entries.find((entry) => stored.some((row) => isSame(row, entry)));
  const added = keyring.entries.filter(({ id }) => stored.every((row) => row.id !== id));
  if (added.length === 0) return;
  const rows = added.map((entry) => {
    const row = { id: entry.id, check_value: entry.checkValue };
    return { ...row, ...macOf(voucher ?? keyring.primary, partsOf(row)) };
  });
  await db
    .insertInto('keyring_entries')
    .values(rows)
    .onConflict((conflict) => conflict.doNothing())
    .execute();
}

/**
 * A stored entry with other bytes stops the start if it is authentic: it is the first one of the installation, or
 * another entry of this keyring authenticates it. Otherwise the service's database role may have written it.
 */
function requireSameEntries(stored: readonly StoredEntry[], keyring: Keyring, rootId: string): string[] {
  const isProven = keyring.entries.some((entry) => stored.some((row) => isSame(row, entry)));
  const forged: string[] = [];
  for (const row of stored) {
    const entry = keyring.get(row.id);
    if (entry === undefined || isSame(row, entry)) continue;
    const voucher = row.mac_keyring_id === row.id ? undefined : keyring.get(row.mac_keyring_id);
    const isVouchedFor = voucher !== undefined && isAuthentic(keyring, row, partsOf(row));
    if (isProven && !isVouchedFor && row.id !== rootId) {
      forged.push(row.id);
      continue;
    }
    throw new InstallationMismatch(
      `Keyring entry ${row.id} differs from the entry with this id that was used with this database before. ` +
        'Restore the right keyring. For a new secret use a new id.',
    );
  }
  return forged;
}

function isSame({ id, check_value: checkValue }: StoredEntry, entry: KeyringEntry): boolean {
  return id === entry.id && entry.checkValue.equals(checkValue);
}

function partsOf({ id, check_value: checkValue }: Pick<StoredEntry, 'id' | 'check_value'>): MacParts {
  return ['keyring_entry', id, checkValue.toString('base64')];
}

/** Whether this database is a restored copy of another one that the owner has not declared to be its replacement. */
export async function isRestoredCopy(db: Db): Promise<boolean> {
  const { rows } = await sql<{ isCopy: boolean }>`
    select home <> database_home() as "isCopy" from installation`.execute(db);
  return rows[0]?.isCopy === true;
}

/** What to do about a restored copy. */
export const restoredCopyRemedy =
  'No webhooks are sent. If it replaces the original, run as the owner `update installation set home = ' +
  'database_home()`, and restart the service.';
