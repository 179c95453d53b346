import { randomBytes } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { idSuffixPattern } from '../domain/ids.ts';
import type { Role } from '../domain/permissions.ts';
import { Secret } from './secret.ts';

/**
 * `<prefix>_<kind>_<26 characters of id><_><43 base62 characters><6 base62 characters>`: a prefix for secret scanners,
 * the row's id, 256 random bits, and a CRC-32 of everything before it. A cut or mistyped token is rejected without a
 * query.
 */

/** `k` API key, `a` admin, `v` verifier, `o` operator, `c` code of a claim. */
export type TokenKind = 'k' | 'a' | 'v' | 'o' | 'c';

/** The kind of an access token by its role. */
export const tokenKindOf = { operator: 'o', admin: 'a', verifier: 'v' } as const satisfies Record<Role, TokenKind>;

export interface ParsedToken {
  kind: TokenKind;
  /** The 26 characters of the row's id. */
  idSuffix: string;
}

const alphabet = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const randomLength = 43;
const checksumLength = 6;

export function mintToken({ prefix, kind, idSuffix }: { prefix: string } & ParsedToken): Secret {
  const random = base62(BigInt(`0x${randomBytes(32).toString('hex')}`), randomLength);
  const body = `${prefix}_${kind}_${idSuffix}_${random}`;
  return new Secret(body + checksum(body));
}

/** The length of every token with this prefix. */
export function tokenLength(prefix: string): number {
  return prefix.length + 30 + randomLength + checksumLength;
}

/** Reads kind and id by their positions, without a check that the text is a token. */
export function tokenParts(text: string, prefix: string): { kind: string; idSuffix: string } {
  const kindAt = prefix.length + 1;
  const idAt = kindAt + 2;
  return { kind: text.charAt(kindAt), idSuffix: text.slice(idAt, idAt + 26) };
}

/** Parses a token of this installation. Undefined if the form or the checksum is wrong. */
export function parseToken(text: string, prefix: string): ParsedToken | undefined {
  if (text.length !== tokenLength(prefix)) return undefined;
  if (!text.startsWith(`${prefix}_`) || !afterPrefix.test(text.slice(prefix.length + 1))) return undefined;
  const body = text.slice(0, -checksumLength);
  if (checksum(body) !== text.slice(-checksumLength)) return undefined;
  return tokenParts(text, prefix) as ParsedToken;
}

/** Whether a text has the place and kind of a token's parts: a token of this installation, or a mistyped one. */
export function hasTokenForm(text: string, prefix: string): boolean {
  if (text.length !== tokenLength(prefix) || !text.startsWith(`${prefix}_`)) return false;
  const kindAt = prefix.length + 1;
  return 'kavoc'.includes(text.charAt(kindAt)) && text.charAt(kindAt + 1) === '_' && text.charAt(kindAt + 28) === '_';
}

const afterPrefix = new RegExp(`^[kavoc]_${idSuffixPattern}_[0-9A-Za-z]{${randomLength + checksumLength}}$`);

/** The masked form of an imported token. @param lastFour null if it is unknown */
export function maskedImportedToken(lastFour: string | null): string {
  return `…${lastFour ?? ''}`;
}

/** The masked form of a token: its kind and its last four characters. */
export function maskedToken(prefix: string, kind: TokenKind, lastFour: string): string {
  return `${prefix}_${kind}_…${lastFour}`;
}

function checksum(body: string): string {
  let rest = crc32(body);
  let text = '';
  for (let index = 0; index < checksumLength; index++) {
    text = alphabet.charAt(rest % 62) + text;
    rest = Math.floor(rest / 62);
  }
  return text;
}

function base62(value: bigint, length: number): string {
  let rest = value;
  let text = '';
  for (let index = 0; index < length; index++) {
    text = alphabet[Number(rest % 62n)] + text;
    rest /= 62n;
  }
  return text;
}
