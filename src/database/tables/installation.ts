import type { Generated } from 'kysely';

export interface InstallationTable {
  one: Generated<true>;
  token_prefix: string;
  /** The keyring entry of the first start. Its check value is authenticated by itself; all others by another entry. */
  root_keyring_id: string;
  /** The database in which the installation was created, or to which the owner moved it. A restored copy differs. */
  home: Generated<string>;
  created_at: Generated<Date>;
}
