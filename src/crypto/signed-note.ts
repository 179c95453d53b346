import {
  createHash,
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  sign as signBytes,
  verify as verifyBytes,
} from 'node:crypto';

/**
 * Signed notes by C2SP (https://c2sp.org/signed-note): text, a blank line, and signature lines
 * `— <key name> <base64 of a 4-byte key id and an Ed25519 signature>`. The signature covers the text with its last newline.
 */

export interface NoteVerifier {
  name: string;
  /** The first four bytes of SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key), as eight digits of hex. */
  keyId: string;
  publicKey: KeyObject;
}

export interface NoteSigner extends NoteVerifier {
  privateKey: KeyObject;
}

interface NoteSignature {
  name: string;
  keyId: string;
  signature: Buffer;
}

export interface SignedNote {
  /** The signed text; ends with a newline. */
  text: string;
  signatures: NoteSignature[];
}

/** The id of Ed25519 in the list of signature types. */
const ed25519 = 1;
const keyIdBytes = 4;
const publicKeyBytes = 32;
const signatureBytes = 64;

/** DER of everything before the 32 bytes of a key (RFC 8410 sections 4 and 7). */
const derPrefix = {
  privateKey: Buffer.from('302e020100300506032b657004220420', 'hex'),
  publicKey: Buffer.from('302a300506032b6570032100', 'hex'),
};

/** @param seed 32 bytes: an Ed25519 private key (RFC 8032 section 5.1.5) */
export function createNoteSigner(name: string, seed: KeyObject): NoteSigner {
  const der = Buffer.concat([derPrefix.privateKey, seed.export()]);
  const privateKey = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
  return { ...verifierOf(name, createPublicKey(privateKey)), privateKey };
}

function verifierOf(name: string, publicKey: KeyObject): NoteVerifier {
  return { name, publicKey, keyId: keyIdOf(name, rawPublicKey(publicKey)) };
}

function rawPublicKey(publicKey: KeyObject): Buffer {
  return publicKey.export({ format: 'der', type: 'spki' }).subarray(-publicKeyBytes);
}

function keyIdOf(name: string, rawKey: Buffer): string {
  const hash = createHash('sha256').update(`${name}\n`).update(Buffer.of(ed25519)).update(rawKey).digest('hex');
  return hash.slice(0, 2 * keyIdBytes);
}

/** `<name>+<key id>+<base64>`, the form in which tools for signed notes take a public key. */
export function toVerifierKey({ name, keyId, publicKey }: NoteVerifier): string {
  return `${name}+${keyId}+${Buffer.concat([Buffer.of(ed25519), rawPublicKey(publicKey)]).toString('base64')}`;
}

export function toPem({ publicKey }: NoteVerifier): string {
  return publicKey.export({ format: 'pem', type: 'spki' }).toString();
}

/** Undefined if it is not an Ed25519 key of that form, or its id does not match its bytes. */
export function parseVerifierKey(text: string): NoteVerifier | undefined {
  const [, name = '', keyId = '', encoded = ''] = /^([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})$/.exec(text) ?? [];
  const bytes = Buffer.from(encoded, 'base64');
  if (bytes.length !== 1 + publicKeyBytes || bytes[0] !== ed25519) return undefined;
  const rawKey = bytes.subarray(1);
  if (keyIdOf(name, rawKey) !== keyId) return undefined;
  const der = Buffer.concat([derPrefix.publicKey, rawKey]);
  return { name, keyId, publicKey: createPublicKey({ key: der, format: 'der', type: 'spki' }) };
}

/** @param text ends with a newline and has no empty line */
export function signNote(text: string, signers: readonly NoteSigner[]): string {
  const lines = signers.map(({ name, keyId, privateKey }) => {
    const signature = signBytes(null, Buffer.from(text), privateKey);
    return `— ${name} ${Buffer.concat([Buffer.from(keyId, 'hex'), signature]).toString('base64')}\n`;
  });
  return `${text}\n${lines.join('')}`;
}

const signatureLine = /^— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})$/;

/** Undefined if the text is not a signed note. Signatures other than Ed25519 are left out. */
export function parseNote(note: string): SignedNote | undefined {
  const end = note.lastIndexOf('\n\n');
  if (end < 1 || !note.endsWith('\n')) return undefined;
  const signatures: NoteSignature[] = [];
  for (const line of note.slice(end + 2, -1).split('\n')) {
    const [, name, encoded] = signatureLine.exec(line) ?? [];
    if (name === undefined || encoded === undefined) return undefined;
    const bytes = Buffer.from(encoded, 'base64');
    if (bytes.length !== keyIdBytes + signatureBytes) continue;
    signatures.push({ name, keyId: bytes.toString('hex', 0, keyIdBytes), signature: bytes.subarray(keyIdBytes) });
  }
  return { text: note.slice(0, end + 1), signatures };
}

/**
 * `valid`: a known key has signed the note, and no signature of a known key is wrong. `forged`: a signature of a known
 * key is wrong. `unknown`: no signature is of a known key.
 */
export function checkNote(note: SignedNote, verifiers: readonly NoteVerifier[]): 'valid' | 'forged' | 'unknown' {
  let isSigned = false;
  for (const { name, keyId, signature } of note.signatures) {
    const verifier = verifiers.find((one) => one.name === name && one.keyId === keyId);
    if (verifier === undefined) continue;
    if (!verifyBytes(null, Buffer.from(note.text), verifier.publicKey, signature)) return 'forged';
    isSigned = true;
  }
  return isSigned ? 'valid' : 'unknown';
}
