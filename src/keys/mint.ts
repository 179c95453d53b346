import { type CredentialColumns, mintCredential, type TokenCrypto } from '../credentials/mint.ts';
import { seal } from '../crypto/seal.ts';
import type { Secret } from '../crypto/secret.ts';
import { type KeyId, newId, type OrganizationId } from '../domain/ids.ts';
import type { SealedColumns } from './store.ts';

/** A key that exists nowhere yet but here. */
export interface MintedKey {
  id: KeyId;
  plaintext: Secret;
  columns: CredentialColumns;
  sealed: SealedColumns;
}

export interface KeyMint {
  /** Costs one argon2id run. @throws Problem `overloaded` */
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

/** What a sealed key is bound to: moved to another organization or key, it does not open. */
export function sealBinding(organizationId: OrganizationId, id: KeyId) {
  return { purpose: 'api_key', organizationId, recordId: id } as const;
}
