import type { Keyring } from '../../crypto/keyring.ts';
import {
  createNoteSigner,
  type NoteSigner,
  type NoteVerifier,
  parseNote,
  parseVerifierKey,
  type SignedNote,
  signNote,
  toPem,
  toVerifierKey,
} from '../../crypto/signed-note.ts';

/**
 * The signed length and last hash of a chain, as a note in the form of transparency logs
 * (https://c2sp.org/tlog-checkpoint), with the chain's last hash in place of a Merkle tree's root.
 */
export interface Checkpoint {
  chain: string;
  size: number;
  /** The hash of the event with this sequence number; 32 zero bytes for an empty chain. */
  hash: Buffer;
}

export interface SignedCheckpoint extends Checkpoint {
  /** The note's text, byte for byte. */
  note: string;
  signed: SignedNote;
}

/** One name for all chains, so that one public key verifies all of them. */
const keyName = 'latchkey';
const originPrefix = 'latchkey/';

/** One signing key per keyring entry, the primary's first. */
export function checkpointSigners(keyring: Keyring): NoteSigner[] {
  const secondaries = keyring.entries.filter((entry) => entry !== keyring.primary);
  return [keyring.primary, ...secondaries].map(({ signSeed }) => createNoteSigner(keyName, signSeed));
}

/**
 * Every keyring entry signs, so that a holder of the old public key can follow a rotation. Deterministic: every replica
 * signs the same head to the same bytes.
 */
export function signCheckpoint({ chain, size, hash }: Checkpoint, signers: readonly NoteSigner[]): string {
  return signNote(`${originPrefix}${chain}\n${size}\n${hash.toString('base64')}\n`, signers);
}

const bodyForm =
  /^latchkey\/(installation|org_[0-7][0-9a-hjkmnp-tv-z]{25})\n(0|[1-9][0-9]{0,14})\n([A-Za-z0-9+/]{43}=)\n$/;

/** Undefined if the note is incomplete, such as the last one in a file after a crash. */
export function parseCheckpoint(note: string): SignedCheckpoint | undefined {
  const signed = parseNote(note);
  const [, chain, size, hash] = bodyForm.exec(signed?.text ?? '') ?? [];
  if (signed === undefined || signed.signatures.length === 0 || chain === undefined || hash === undefined) {
    return undefined;
  }
  return { chain, size: Number(size), hash: Buffer.from(hash, 'base64'), note, signed };
}

/** The public keys as text: for each, a line for signed-note tools and a PEM block. */
export function publicKeysText(verifiers: readonly NoteVerifier[]): string {
  return verifiers.map((verifier) => `${toVerifierKey(verifier)}\n${toPem(verifier)}`).join('\n');
}

/** Reads the keys from such a text and ignores other lines. */
export function parsePublicKeys(text: string): NoteVerifier[] {
  return text
    .split('\n')
    .map((line) => parseVerifierKey(line.trim()))
    .filter((verifier) => verifier !== undefined);
}

/** Origin, size and hash. */
const bodyLines = 3;

/**
 * Splits a file of notes that are separated by blank lines.
 * @returns every text that could be a note, incomplete ones included; `parseCheckpoint` rejects those
 */
export async function* splitNotes(lines: AsyncIterable<Buffer>): AsyncGenerator<string> {
  let body: string[] = [];
  let signatures: string[] = [];
  let isBodyOver = false;
  const take = () => {
    const note = [...body, '', ...signatures, ''].join('\n');
    [body, signatures, isBodyOver] = [[], [], false];
    return note;
  };
  for await (const bytes of lines) {
    const line = bytes.toString();
    if (line.startsWith('— ')) {
      signatures.push(line);
      continue;
    }
    const isTorn = line === '' ? body.length > 0 && (isBodyOver || body.length !== bodyLines) : isBodyOver;
    if (signatures.length > 0 || isTorn) yield take();
    if (line === '') isBodyOver = body.length > 0;
    else body.push(line);
  }
  if (body.length + signatures.length > 0) yield take();
}
