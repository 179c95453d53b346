import { type CredentialColumns, mintCredential, type TokenCrypto } from '../credentials/mint.ts';
import { seal } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import { type KeyId, newId, type OrganizationId } from '../domain/ids.ts';
import type { SealedColumns } from './store.ts';

/** A new key that is not stored yet. */
export interface MintedKey {
  id: KeyId;
  plaintext: Secret;
  columns: CredentialColumns;
  sealed: SealedColumns;
}

export interface KeyMint {
  /** Runs argon2id once. @throws Problem `overloaded` */
  mint(organizationId: OrganizationId): Promise<MintedKey>;
}

export function createKeyMint(crypto: TokenCrypto): KeyMint {
  return {
    async mint(organizationId) {
      const id = newId('key');
      const { plaintext, columns } = await mintCredential(crypto, 'k', id);
      const { sealed, keyringId } = seal(crypto.keyring, plaintext, sealBinding(organizationId, id));
      return { id, plaintext, columns, sealed: { sealed, sealed_keyring_id: keyringId } };
    },
  };
}

/** Binds a sealed key to its organization and id, so that it cannot be unsealed in another row. */
export function sealBinding(organizationId: OrganizationId, id: KeyId) {
  return { purpose: 'api_key', organizationId, recordId: id } as const;
}
