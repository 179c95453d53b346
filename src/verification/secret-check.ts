import pLimit from 'p-limit';
import type { TokenCrypto } from '../auth/mint.ts';
import type { Fingerprint } from '../core/fingerprints.ts';
import type { AccessTokenId, KeyId } from '../core/ids.ts';
import type { AttemptLimit } from '../crypto/attempt-limit.ts';
import type { Secret } from '../crypto/secret.ts';
import { decoyMatches, fingerprintOf, tagMatches, tagOf } from '../crypto/tag.ts';

export interface CheckedRecord {
  id: KeyId | AccessTokenId;
  /** Its bytes as Latin-1. */
  tag: string;
  tag_keyring_id: string;
  argon2id_hash: string | null;
}

interface SecretCheckOptions<Checked extends CheckedRecord> {
  crypto: TokenCrypto;
  attempts: AttemptLimit;
  /** Told what to know a token by that the tag has found right: its HMAC costs four times as much and leaves more to collect. */
  onRight: (record: Checked, fingerprint: Fingerprint) => void;
  /** Stores a renewed tag. A failure does not reject the token: the next process does it again. */
  retag: (id: KeyId | AccessTokenId, tag: { tag: Buffer; tag_keyring_id: string }) => Promise<void>;
}

/** Whether a token is the one that a record was made for; undefined record: do the same work and say no. */
export type SecretCheck<Checked extends CheckedRecord> = (
  record: Checked | undefined,
  token: Secret,
) => boolean | Promise<boolean>;

/** Renewals of tags at once: after a rotation of the keyring every key in use needs one. */
const renewalsAtOnce = 2;

/**
 * The tag decides, in microseconds; one under a secondary keyring entry is renewed under the primary. The argon2id hash
 * decides only where the operator names the tag's entry as lost. One attempt at a time and few failures a minute for each
 * id, so guessing cannot buy argon2id runs.
 */
export function createSecretCheck<Checked extends CheckedRecord>(
  options: SecretCheckOptions<Checked>,
): SecretCheck<Checked> {
  const { crypto, attempts, retag, onRight } = options;
  const running = new Map<string, { tag: Buffer; matches: Promise<boolean> }>();
  const { primary, lostIds } = crypto.keyring;
  const renewals = pLimit(renewalsAtOnce);

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
    // The copy in memory too: the next request may come before the record is loaded again.
    Object.assign(record, { tag: tag.toString('latin1'), tag_keyring_id: primary.id });
    await renewals(() => retag(record.id, { tag, tag_keyring_id: primary.id }));
    return true;
  }

  return function check(record: Checked | undefined, token: Secret): boolean | Promise<boolean> {
    if (record === undefined) return decoyMatches(primary, token);
    const entry = crypto.keyring.get(record.tag_keyring_id);
    if (entry !== undefined) {
      const matches = tagMatches(entry, token, Buffer.from(record.tag, 'latin1'));
      if (matches) onRight(record, fingerprintOf(token));
      if (matches && entry !== primary) void renew(record, tagOf(primary, token));
      return matches;
    }
    const isLost = lostIds.has(record.tag_keyring_id);
    if (!isLost || record.argon2id_hash === null) return decoyMatches(primary, token);
    return checkSlowly(record, record.argon2id_hash, token);
  };
}
