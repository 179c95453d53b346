import type { Keyring } from '../crypto/keyring.ts';
import type { Secret } from '../crypto/secret.ts';
import type { SecretHasher } from '../crypto/secret-hash.ts';
import { tagOf } from '../crypto/tag.ts';
import { mintToken, type TokenKind } from '../crypto/token.ts';
import { type AccessTokenId, idSuffix, type KeyId } from '../domain/ids.ts';

/** The dependencies of minting and checking tokens. */
export interface TokenCrypto {
  /** The prefix of every token of this installation. */
  prefix: string;
  keyring: Keyring;
  hasher: SecretHasher;
}

/** The part of a token that is stored. */
export interface CredentialColumns {
  tag: Buffer;
  tag_keyring_id: string;
  argon2id_hash: string;
  last_four: string;
}

export interface MintedCredential {
  plaintext: Secret;
  columns: CredentialColumns;
}

/** Mints a token for a row that is about to be inserted. Runs argon2id once. @throws Problem `overloaded` */
export async function mintCredential(
  { prefix, keyring, hasher }: TokenCrypto,
  kind: TokenKind,
  id: KeyId | AccessTokenId,
): Promise<MintedCredential> {
  const plaintext = mintToken({ prefix, kind, idSuffix: idSuffix(id) });
  const entry = keyring.primary;
  return {
    plaintext,
    columns: {
      tag: tagOf(entry, plaintext),
      tag_keyring_id: entry.id,
      argon2id_hash: await hasher.hash(plaintext),
      last_four: plaintext.reveal().slice(-4),
    },
  };
}
