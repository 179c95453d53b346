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
 * A checkpoint says how long a chain is and what its last hash is, and is signed: a note of the form that transparency
 * logs use (https://c2sp.org/tlog-checkpoint), with the chain's head where they have the root of a Merkle tree.
 */
export interface Checkpoint {
  chain: string;
  size: number;
  /** The hash of the event with this sequence number; 32 zero bytes for an empty chain. */
  hash: Buffer;
}

export interface SignedCheckpoint extends Checkpoint {
  /** The note itself, to be passed on as it is. */
  note: string;
  signed: SignedNote;
}

/** One name for all chains of an installation, so that one public key checks all of them. */
const keyName = 'latchkey';
const originPrefix = 'latchkey/';

/** A key for each entry of the keyring, the primary's first. */
export function checkpointSigners(keyring: Keyring): NoteSigner[] {
  const secondaries = keyring.entries.filter((entry) => entry !== keyring.primary);
  return [keyring.primary, ...secondaries].map(({ signSeed }) => createNoteSigner(keyName, signSeed));
}

/**
 * Signed by every entry of the keyring: while it is rotated, who has only the old public key sees that the new one
 * speaks for the same history. The same head gives the same bytes, whichever replica signs it.
 */
export function signCheckpoint({ chain, size, hash }: Checkpoint, signers: readonly NoteSigner[]): string {
  return signNote(`${originPrefix}${chain}\n${size}\n${hash.toString('base64')}\n`, signers);
}

const bodyForm =
  /^latchkey\/(installation|org_[0-7][0-9a-hjkmnp-tv-z]{25})\n(0|[1-9][0-9]{0,14})\n([A-Za-z0-9+/]{43}=)\n$/;

/** Undefined where it is not a whole one, such as the last of a file whose writer has crashed. */
export function parseCheckpoint(note: string): SignedCheckpoint | undefined {
  const signed = parseNote(note);
  const [, chain, size, hash] = bodyForm.exec(signed?.text ?? '') ?? [];
  if (signed === undefined || signed.signatures.length === 0 || chain === undefined || hash === undefined) {
    return undefined;
  }
  return { chain, size: Number(size), hash: Buffer.from(hash, 'base64'), note, signed };
}

/** The public keys as one text that both kinds of tools read: a line for signed notes and a PEM for each. */
export function publicKeysText(verifiers: readonly NoteVerifier[]): string {
  return verifiers.map((verifier) => `${toVerifierKey(verifier)}\n${toPem(verifier)}`).join('\n');
}

/** The keys of a text of that form; what is around them is passed over. */
export function parsePublicKeys(text: string): NoteVerifier[] {
  return text
    .split('\n')
    .map((line) => parseVerifierKey(line.trim()))
    .filter((verifier) => verifier !== undefined);
}

/** Origin, size and hash. */
const bodyLines = 3;

/**
 * The notes of a file that has one after the other, with blank lines between them.
 * @returns each text that could be a note; torn ones may be among them, which `parseCheckpoint` tells
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
