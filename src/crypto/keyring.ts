import { createSecretKey, hkdfSync, type KeyObject, randomBytes } from 'node:crypto';

/**
 * The server's secrets: `id:base64,id:base64…`, 32 bytes each, the first of them primary. Everything else is derived
 * from an entry with HKDF-SHA-256 (RFC 5869) under labels of its own, so no two uses share a key.
 */
export interface KeyringEntry {
  id: string;
  tagKey: KeyObject;
  macKey: KeyObject;
  sealKey: KeyObject;
  signSeed: KeyObject;
  /** Tells whether another process holds the same bytes under this id, without telling the bytes. 32 bytes. */
  checkValue: Buffer;
}

export interface Keyring {
  /** Makes whatever is new. */
  primary: KeyringEntry;
  entries: readonly KeyringEntry[];
  /** Undefined for an entry that was retired. */
  get(id: string): KeyringEntry | undefined;
  /** Ids of entries that the operator names as lost: nothing under them can be checked, and argon2id decides instead. */
  lostIds: ReadonlySet<string>;
}

/** The keyring's text is not one. The message never holds key material. */
export class KeyringError extends Error {
  override readonly name = 'KeyringError';
}

const idForm = /^[a-z0-9-]{1,32}$/;
const entryBytes = 32;

/** @throws KeyringError naming the entry by its place, or a lost id that the keyring has */
export function parseKeyring(text: string, lostIds: readonly string[] = []): Keyring {
  const entries = text
    .trim()
    .split(',')
    .map((part, index) => parseEntry(part.trim(), index + 1));
  const byId = new Map(entries.map((entry) => [entry.id, entry]));
  if (byId.size !== entries.length) throw new KeyringError('two entries have the same id');
  const [primary] = entries;
  if (primary === undefined) throw new KeyringError('it has no entry');
  for (const id of lostIds) {
    if (!idForm.test(id)) throw new KeyringError(`the lost id ${id} is not one: a-z, 0-9 and - (at most 32)`);
    if (byId.has(id)) throw new KeyringError(`${id} is named as lost, but the keyring has it`);
  }
  return { primary, entries, get: (id) => byId.get(id), lostIds: new Set(lostIds) };
}

function parseEntry(text: string, place: number): KeyringEntry {
  const colon = text.indexOf(':');
  const id = text.slice(0, colon);
  if (colon < 1 || !idForm.test(id)) {
    throw new KeyringError(`entry ${place} must be <id>:<base64>, with an id of a-z, 0-9 and - (at most 32)`);
  }
  const encoded = text.slice(colon + 1);
  const bytes = Buffer.from(encoded, 'base64');
  if (bytes.length !== entryBytes || bytes.toString('base64').replace(/=+$/, '') !== encoded.replace(/=+$/, '')) {
    throw new KeyringError(`entry ${place} must carry exactly ${entryBytes} bytes in base64`);
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

/** A fresh keyring of one entry, as text for a file or a setting. The id is the day on which it was made. */
export function generateKeyring(now: Date): string {
  return `k${now.toISOString().slice(0, 10).replaceAll('-', '')}:${randomBytes(entryBytes).toString('base64')}`;
}
