import type { FastifyBaseLogger } from 'fastify';
import pLimit from 'p-limit';
import type { TokenCrypto } from '../credentials/mint.ts';
import { replaceTag } from '../credentials/store.ts';
import { type AttemptLimit, createAttemptLimit } from '../crypto/attempt-limit.ts';
import type { Keyring, KeyringEntry } from '../crypto/keyring.ts';
import { Secret } from '../crypto/secret.ts';
import { decoyMatches, digestOf, importedTagOf, isSameTag, tagMatches, tagOf, tokenHashOf } from '../crypto/tag.ts';
import { hasTokenForm, parseToken, tokenKindOf, tokenParts } from '../crypto/token.ts';
import type { Db } from '../database/client.ts';
import type { AccessTokenId, KeyId, OrganizationId } from '../domain/ids.ts';
import { andThen, type MaybePromise } from '../lib/maybe-promise.ts';
import type { ApiKeyRecord } from './api-key-record.ts';
import type { CachedRecord, KeyCache } from './key-cache.ts';
import { type AccessTokenRecord, anyOrganization } from './record-store.ts';
import type { Records } from './records.ts';

/** `malformed`: the text is not a token. Undefined: the record does not exist, or the secret is wrong. */
export type LookupResult<Cached> = Cached | 'malformed' | undefined;

/**
 * The record of a text that is a credential. `unchecked`: the text names a record whose tag cannot be checked, because the
 * keyring lacks its entry.
 */
export type Recognized =
  | { kind: 'api_key'; record: ApiKeyRecord }
  | { kind: 'access_token'; record: AccessTokenRecord }
  | { kind: 'unchecked'; id: KeyId | AccessTokenId };

/** Finds the record of a presented token. */
export interface Credentials {
  /** Whether the text has the form of an access token. */
  isAccessToken(token: string): boolean;
  /** @throws Problem `overloaded`, `unavailable` */
  findApiKey(token: string, by: KeyLookup): MaybePromise<LookupResult<ApiKeyRecord>>;
  /** @throws Problem `overloaded`, `unavailable` */
  findAccessToken(token: string): MaybePromise<LookupResult<AccessTokenRecord>>;
  /**
   * Whether a reported text is a credential, live or deleted. Only tags decide, so argon2id never runs.
   * @throws Problem `overloaded`, `unavailable`
   */
  recognize(text: string): MaybePromise<Recognized | undefined>;
}

/** How a key is looked up. */
export interface KeyLookup {
  /** Imported keys are looked up only if this organization has some; null: if any organization has. */
  callerOrganizationId: OrganizationId | null;
  /** Read the record from the database. */
  fresh: boolean;
}

interface CredentialsOptions {
  db: Db;
  logger: Pick<FastifyBaseLogger, 'warn'>;
  records: Pick<Records, 'apiKeys' | 'accessTokens' | 'importedPointers' | 'importedPresence'>;
  crypto: TokenCrypto;
}

interface Presented<Id> {
  token: string;
  id: Id;
  fresh: boolean;
}

/** Finds and checks credentials through the key cache. */
export function createCredentials({ db, logger, records, crypto }: CredentialsOptions): Credentials {
  const { prefix, keyring } = crypto;
  const attempts = createAttemptLimit();
  const checkFor = (table: 'api_keys' | 'access_tokens') =>
    createSecretCheck({
      crypto,
      attempts,
      retag: (id, tag) =>
        replaceTag(db, keyring, table, id, tag).catch((err: unknown) => {
          logger.warn({ err, id }, "A credential's renewed tag could not be stored. The next process renews it again.");
        }),
    });
  const checkKey = checkFor('api_keys');
  const checkAccessToken = checkFor('access_tokens');

  /** A token that matched the cached record before is accepted by its hash alone. */
  function find<Id extends string, Cached extends CachedRecord<Id> & CheckedRecord>(
    { token, id, fresh }: Presented<Id>,
    cache: KeyCache<Id, Cached>,
    check: SecretCheck,
  ): MaybePromise<LookupResult<Cached>> {
    const secret = new Secret(token);
    const cached = fresh ? undefined : cache.getFromMemory(id);
    if (cached !== undefined && matchesVerifiedToken(cached, secret)) return cached;
    if (parseToken(token, prefix) === undefined) return 'malformed';
    return checked(cached ?? cache.get(id, fresh), secret, check);
  }

  function checked<Cached extends CheckedRecord>(
    read: MaybePromise<Cached | undefined>,
    secret: Secret,
    check: SecretCheck,
  ): MaybePromise<Cached | undefined> {
    return andThen(read, (record) => andThen(check(record, secret), (isRight) => (isRight ? record : undefined)));
  }

  /** A text without Latchkey's form is looked up only if keys were imported; otherwise it costs nothing. */
  function findImported(token: string, by: KeyLookup): MaybePromise<LookupResult<ApiKeyRecord>> {
    if (token === '') return 'malformed';
    const presence = records.importedPresence.get(by.callerOrganizationId ?? anyOrganization, by.fresh);
    return andThen(presence, (found) => (found?.isThere === true ? findByHash(token, by) : 'malformed'));
  }

  function findByHash(token: string, { fresh }: KeyLookup): MaybePromise<ApiKeyRecord | undefined> {
    const secret = new Secret(token);
    return andThen(records.importedPointers.get(tokenHashOf(secret), fresh), (pointer) => {
      if (pointer === undefined) return undefined;
      const { keyId } = pointer;
      const cached = fresh ? undefined : records.apiKeys.getFromMemory(keyId);
      if (cached !== undefined && matchesVerifiedToken(cached, secret)) return cached;
      return checked(cached ?? records.apiKeys.get(keyId, fresh), secret, checkKey);
    });
  }

  function recognizeRecord<Cached extends CheckedRecord, Kind extends string>(
    kind: Kind,
    record: Cached | undefined,
    text: Secret,
  ): { kind: Kind; record: Cached } | { kind: 'unchecked'; id: KeyId | AccessTokenId } | undefined {
    const matches = matchesTag(keyring, record, text);
    if (record === undefined || matches === false) return undefined;
    return matches ? { kind, record } : { kind: 'unchecked', id: record.id };
  }

  return {
    isAccessToken: (token) => tokenParts(token, prefix).kind !== 'k' && hasTokenForm(token, prefix),
    findApiKey(token, by) {
      const { kind, idSuffix } = tokenParts(token, prefix);
      if (kind === 'k') {
        const found = find({ token, id: `key_${idSuffix}` as KeyId, fresh: by.fresh }, records.apiKeys, checkKey);
        if (found !== 'malformed') return found;
      }
      return hasTokenForm(token, prefix) ? 'malformed' : findImported(token, by);
    },
    findAccessToken(token) {
      const { kind, idSuffix } = tokenParts(token, prefix);
      const id = `token_${idSuffix}` as AccessTokenId;
      return andThen(find({ token, id, fresh: false }, records.accessTokens, checkAccessToken), (found) => {
        if (found === undefined || found === 'malformed') return found;
        // The kind in the token must match the role of the row.
        return tokenKindOf[found.role] === kind ? found : undefined;
      });
    },
    recognize(text): MaybePromise<Recognized | undefined> {
      const token = parseToken(text, prefix);
      if (token === undefined) {
        if (hasTokenForm(text, prefix)) return undefined;
        return andThen(findImported(text, { callerOrganizationId: null, fresh: false }), (found) =>
          found === undefined || found === 'malformed' ? undefined : { kind: 'api_key' as const, record: found },
        );
      }
      const secret = new Secret(text);
      if (token.kind === 'k') {
        const key = records.apiKeys.get(`key_${token.idSuffix}` as KeyId);
        return andThen(key, (record) => recognizeRecord('api_key', record, secret));
      }
      const accessToken = records.accessTokens.get(`token_${token.idSuffix}` as AccessTokenId);
      return andThen(accessToken, (record) => recognizeRecord('access_token', record, secret));
    },
  };
}

/** The part of a record that the check of a secret needs. */
export interface CheckedRecord {
  id: KeyId | AccessTokenId;
  /** The bytes as Latin-1. */
  tag: string;
  tag_keyring_id: string;
  argon2id_hash: string | null;
  /** The tag of an imported key is made from the token's SHA-256. */
  isImported?: boolean;
  /** SHA-256 of the token that matched the tag; makes the next check cheaper. */
  tokenHash: string | undefined;
}

interface SecretCheckOptions {
  crypto: TokenCrypto;
  attempts: AttemptLimit;
  /** Stores a renewed tag. A failure does not reject the token. */
  retag: (id: KeyId | AccessTokenId, tag: { tag: Buffer; tag_keyring_id: string }) => Promise<void>;
}

/** Whether a token belongs to a record. For an undefined record: does the same work and returns false. */
export type SecretCheck = (record: CheckedRecord | undefined, token: Secret) => MaybePromise<boolean>;

/** Whether this token already matched this copy of the record. */
function matchesVerifiedToken({ tokenHash }: CheckedRecord, token: Secret): boolean {
  return tokenHash !== undefined && tokenHash === tokenHashOf(token);
}

/**
 * Compares a token with a record's tag. Undefined: the keyring lacks the tag's entry. For an undefined record: does the same
 * work and returns false.
 */
function matchesTag(keyring: Keyring, record: CheckedRecord | undefined, token: Secret): boolean | undefined {
  const entry = record && keyring.get(record.tag_keyring_id);
  if (record !== undefined && entry !== undefined) {
    return isSameTag(tagUnder(record, token)(entry), Buffer.from(record.tag, 'latin1'));
  }
  const isFalse = decoyMatches(keyring.primary, token);
  return record === undefined ? isFalse : undefined;
}

/** Concurrent renewals of tags: after a rotation of the keyring every key in use needs one. */
const renewalsAtOnce = 2;

/**
 * Checks a token by its tag, and renews a tag under a secondary keyring entry. If the operator declared the entry lost, the
 * slow argon2id hash decides; attempts per id are limited, so that guessing cannot exhaust the processor.
 */
export function createSecretCheck({ crypto, attempts, retag }: SecretCheckOptions): SecretCheck {
  const running = new Map<string, { tag: Buffer; matches: Promise<boolean> }>();
  const { primary, lostIds } = crypto.keyring;
  const renewals = pLimit(renewalsAtOnce);

  /** Requests with the same token share one attempt; otherwise a busy key would be rejected while its tag is renewed. */
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
    // Update the cached copy too: the next request may arrive before the record is loaded again.
    Object.assign(record, { tag: tag.toString('latin1'), tag_keyring_id: primary.id });
    await renewals(() => retag(record.id, { tag, tag_keyring_id: primary.id }));
    return true;
  }

  return function check(record, token) {
    const matches = matchesTag(crypto.keyring, record, token);
    if (record === undefined || matches === false) return false;
    if (matches) {
      record.tokenHash = tokenHashOf(token);
      if (record.tag_keyring_id !== primary.id) void renew(record, tagUnder(record, token)(primary));
      return true;
    }
    const isLost = lostIds.has(record.tag_keyring_id);
    if (!isLost || record.argon2id_hash === null) return false;
    return checkSlowly(record, record.argon2id_hash, token);
  };
}

/** The tag that a token has under an entry, if it belongs to the record. */
function tagUnder(record: CheckedRecord, token: Secret): (entry: KeyringEntry) => Buffer {
  return record.isImported === true ? importedTags(token) : (entry) => tagOf(entry, token);
}

function importedTags(token: Secret): (entry: KeyringEntry) => Buffer {
  const digest = digestOf(token);
  return (entry) => importedTagOf(entry, digest);
}
