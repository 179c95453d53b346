import { createSecretKey, hkdfSync, type KeyObject, randomBytes } from 'node:crypto';

/**
 * The server's secrets: `id:base64,id:base64…`, 32 bytes each, the first of them primary. All keys are derived from an
 * entry with HKDF-SHA-256 (RFC 5869), each under a label of its own, so that no two uses share a key.
 */
export interface KeyringEntry {
  id: string;
  tagKey: KeyObject;
  macKey: KeyObject;
  sealKey: KeyObject;
  signSeed: KeyObject;
  /** A value of 32 bytes that proves the possession of an entry without revealing it. */
  checkValue: Buffer;
}

export interface Keyring {
  /** Used for everything that is written. */
  primary: KeyringEntry;
  entries: readonly KeyringEntry[];
  /** Undefined for an unknown entry. */
  get(id: string): KeyringEntry | undefined;
  /** Ids of entries in LOST_KEYRING_IDS: their tags cannot be checked, so argon2id decides instead. */
  lostIds: ReadonlySet<string>;
}

/** The text is not a valid keyring. The message never contains key material. */
export class KeyringError extends Error {
  override readonly name = 'KeyringError';
}

const idForm = /^[a-z0-9-]{1,32}$/;
const entryBytes = 32;

/** @throws KeyringError with the position of the entry, or with a lost id that the keyring has */
export function parseKeyring(text: string, lostIds: readonly string[] = []): Keyring {
  const entries = text
    .trim()
    .split(',')
    .map((part, index) => parseEntry(part.trim(), index + 1));
  const byId = new Map(entries.map((entry) => [entry.id, entry]));
  if (byId.size !== entries.length) throw new KeyringError('two entries have the same id');
  const [primary] = entries;
  if (primary === undefined) throw new KeyringError('the keyring has no entry');
  for (const id of lostIds) {
    if (!idForm.test(id))
      throw new KeyringError(`the lost id ${id} is not valid: use a-z, 0-9 and - (at most 32 characters)`);
    if (byId.has(id)) throw new KeyringError(`${id} is listed as lost, but the keyring contains it`);
  }
  return { primary, entries, get: (id) => byId.get(id), lostIds: new Set(lostIds) };
}

function parseEntry(text: string, place: number): KeyringEntry {
  const colon = text.indexOf(':');
  const id = text.slice(0, colon);
  if (colon < 1 || !idForm.test(id)) {
    throw new KeyringError(
      `entry ${place} must be <id>:<base64>, with an id of a-z, 0-9 and - (at most 32 characters)`,
    );
  }
  const encoded = text.slice(colon + 1);
  const bytes = Buffer.from(encoded, 'base64');
  if (bytes.length !== entryBytes || bytes.toString('base64').replace(/=+$/, '') !== encoded.replace(/=+$/, '')) {
    throw new KeyringError(`entry ${place} must have exactly ${entryBytes} bytes in base64`);
  }
  return deriveEntry(id, bytes);
}

function deriveEntry(id: string, secret: Buffer): KeyringEntry {
  return {
    id,
    tagKey: createSecretKey(derive(secret, 'tag')),
    macKey: createSecretKey(derive(secret, 'mac')),
    sealKey: createSecretKey(derive(secret, 'seal')),
    signSeed: createSecretKey(derive(secret, 'sign')),
    checkValue: derive(secret, 'check'),
  };
}

function derive(secret: Buffer, use: 'tag' | 'mac' | 'seal' | 'sign' | 'check'): Buffer {
  return Buffer.from(hkdfSync('sha256', secret, Buffer.alloc(0), `latchkey/v1/${use}`, 32));
}

/** A new keyring with one entry, as text for a file or a setting. Its id is the current day. */
export function generateKeyring(now: Date): string {
  return `k${now.toISOString().slice(0, 10).replaceAll('-', '')}:${randomBytes(entryBytes).toString('base64')}`;
}
