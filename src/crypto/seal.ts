import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import type { Keyring } from './keyring.ts';
import { Secret } from './secret.ts';

/** What a sealed value is bound to. It cannot be unsealed for anything else. */
export interface SealBinding {
  purpose: 'api_key' | 'imported_digest' | 'claim' | 'webhook' | 'reply';
  /** Null for the installation. */
  organizationId: string | null;
  recordId: string;
  /** Other values that must be the same as when the value was sealed. */
  facts?: ReadonlyArray<string | null>;
}

const algorithm = 'aes-256-gcm';
const nonceBytes = 12;
const tagBytes = 16;

/** AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce. Layout: nonce ‖ ciphertext ‖ 16-byte tag. */
export function seal(keyring: Keyring, secret: Secret, binding: SealBinding): { keyringId: string; sealed: Buffer } {
  const { id, sealKey } = keyring.primary;
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv(algorithm, sealKey, nonce, { authTagLength: tagBytes });
  cipher.setAAD(additionalData(binding));
  const ciphertext = Buffer.concat([cipher.update(secret.reveal(), 'utf8'), cipher.final()]);
  return { keyringId: id, sealed: Buffer.concat([nonce, ciphertext, cipher.getAuthTag()]) };
}

/** A sealed value cannot be unsealed. The message says why. */
export class SealBroken extends Error {
  override readonly name = 'SealBroken';
  readonly reason: 'unknown_keyring_entry' | 'not_authentic';

  constructor(reason: SealBroken['reason'], recordId: string) {
    super(`The sealed value of ${recordId} cannot be unsealed: ${reason}`);
    this.reason = reason;
  }
}

/** @throws SealBroken for a missing keyring entry, a changed byte, or a value that belongs to another row */
export function unseal(
  keyring: Keyring,
  { keyringId, sealed }: { keyringId: string; sealed: Buffer },
  binding: SealBinding,
): Secret {
  const entry = keyring.get(keyringId);
  if (entry === undefined) throw new SealBroken('unknown_keyring_entry', binding.recordId);
  if (sealed.length < nonceBytes + tagBytes) throw new SealBroken('not_authentic', binding.recordId);
  const decipher = createDecipheriv(algorithm, entry.sealKey, sealed.subarray(0, nonceBytes), {
    authTagLength: tagBytes,
  });
  decipher.setAAD(additionalData(binding));
  decipher.setAuthTag(sealed.subarray(-tagBytes));
  try {
    const plaintext = [decipher.update(sealed.subarray(nonceBytes, -tagBytes)), decipher.final()];
    return new Secret(Buffer.concat(plaintext).toString('utf8'));
  } catch {
    throw new SealBroken('not_authentic', binding.recordId);
  }
}

/** JSON keeps the parts apart, whatever they contain. */
function additionalData({ purpose, organizationId, recordId, facts = [] }: SealBinding): Buffer {
  return Buffer.from(JSON.stringify(['latchkey/v1/seal', purpose, organizationId, recordId, ...facts]), 'utf8');
}
