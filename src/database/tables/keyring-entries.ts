import type { Generated } from 'kysely';

export interface KeyringEntriesTable {
  id: string;
  check_value: Buffer;
  /** Made with another entry, so that only a holder of the keyring can add one. */
  mac: Buffer;
  mac_keyring_id: string;
  first_seen_at: Generated<Date>;
}
