import type { AccessTokenId, KeyId } from '../core/ids.ts';
import type { AttemptLimit } from '../crypto/attempt-limit.ts';
import type { Secret } from '../crypto/secret.ts';
import { decoyMatches, tagMatches, tagOf } from '../crypto/tag.ts';
import type { TokenCrypto } from './mint.ts';

interface CheckedRecord {
  id: KeyId | AccessTokenId;
  tag: Buffer;
  tag_keyring_id: string;
  argon2id_hash: string | null;
}

interface SecretCheckOptions {
  crypto: TokenCrypto;
  attempts: AttemptLimit;
  /** Keeps a tag that was made anew. A failure here does not refuse the token. */
  retag: (id: KeyId | AccessTokenId, tag: { tag: Buffer; tag_keyring_id: string }) => Promise<void>;
}

/** Whether a token is the one that a record was made for; undefined record: do the same work and say no. */
export type SecretCheck = (record: CheckedRecord | undefined, token: Secret) => Promise<boolean>;

/**
 * The tag decides, in microseconds. Only where the record's tag was made under a keyring entry that is gone does the
 * argon2id hash decide, which needs no server key; one attempt at a time and few failures a minute for each id, so
 * nobody can buy argon2id runs by guessing.
 */
export function createSecretCheck({ crypto, attempts, retag }: SecretCheckOptions): SecretCheck {
  return async (record, token) => {
    if (record === undefined) return decoyMatches(crypto.keyring.primary, token);
    const entry = crypto.keyring.get(record.tag_keyring_id);
    if (entry !== undefined) return tagMatches(entry, token, record.tag);
    const hash = record.argon2id_hash;
    if (hash === null) return decoyMatches(crypto.keyring.primary, token);
    const matches = await attempts.run(record.id, () => crypto.hasher.verify(hash, token));
    if (matches) {
      const { primary } = crypto.keyring;
      await retag(record.id, { tag: tagOf(primary, token), tag_keyring_id: primary.id });
    }
    return matches;
  };
}
