import type { AccessTokenId, KeyId } from '../core/ids.ts';
import type { AttemptLimit } from '../crypto/attempt-limit.ts';
import type { Secret } from '../crypto/secret.ts';
import { apart, decoyMatches, fingerprintOf, isSameFingerprint, tagMatches, tagOf } from '../crypto/tag.ts';
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
  /** Keeps a tag that was made anew. A failure here does not refuse the token: the next process does it again. */
  retag: (id: KeyId | AccessTokenId, tag: { tag: Buffer; tag_keyring_id: string }) => Promise<void>;
}

export interface SecretCheck {
  /** Whether a token is the one that a record was made for; undefined record: do the same work and say no. */
  (record: CheckedRecord | undefined, token: Secret): boolean | Promise<boolean>;
  /** Whether this token has already been found right for this copy of the record. Then nothing else need be asked of it. */
  knows(record: CheckedRecord, token: Secret): boolean;
}

/**
 * The tag decides, in microseconds. Only where the record's tag was made under a keyring entry that is gone does the
 * argon2id hash decide, which needs no server key; one attempt at a time and few failures a minute for each id, so
 * nobody can buy argon2id runs by guessing.
 */
export function createSecretCheck({ crypto, attempts, retag }: SecretCheckOptions): SecretCheck {
  const running = new Map<string, { tag: Buffer; matches: Promise<boolean> }>();
  const { primary } = crypto.keyring;
  /** Of the right token of a record, once the tag has said so: an HMAC costs four times as much and leaves more to collect. */
  const fingerprints = new WeakMap<CheckedRecord, Buffer>();

  /** Requests with the same token share one attempt, or a busy key would be refused while its tag is made anew. */
  function checkSlowly(record: CheckedRecord, hash: string, token: Secret): Promise<boolean> {
    const shared = running.get(record.id);
    if (shared !== undefined && tagMatches(primary, token, shared.tag)) return shared.matches;
    const tag = tagOf(primary, token);
    const matches = attempts.run(record.id, () => crypto.hasher.verify(hash, token));
    const attempt = { tag, matches: matches.then((isRight) => (isRight ? renew(record, tag) : false)) };
    if (shared === undefined) {
      running.set(record.id, attempt);
      const forget = () => void running.delete(record.id);
      attempt.matches.then(forget, forget);
    }
    return attempt.matches;
  }

  async function renew(record: CheckedRecord, tag: Buffer): Promise<true> {
    // The copy in memory too: the next request may come before the record has been read again.
    Object.assign(record, { tag, tag_keyring_id: primary.id });
    await retag(record.id, { tag, tag_keyring_id: primary.id });
    return true;
  }

  function check(record: CheckedRecord | undefined, token: Secret): boolean | Promise<boolean> {
    if (record === undefined) return decoyMatches(primary, token);
    const entry = crypto.keyring.get(record.tag_keyring_id);
    if (entry !== undefined) {
      const matches = tagMatches(entry, token, record.tag);
      if (matches) fingerprints.set(record, apart(fingerprintOf(token)));
      return matches;
    }
    if (record.argon2id_hash === null) return decoyMatches(primary, token);
    return checkSlowly(record, record.argon2id_hash, token);
  }

  function knows(record: CheckedRecord, token: Secret): boolean {
    const known = fingerprints.get(record);
    return known !== undefined && isSameFingerprint(known, fingerprintOf(token));
  }

  return Object.assign(check, { knows });
}
