import { idSuffixPattern } from '../domain/ids.ts';
import { decodePercent } from '../lib/decode-percent.ts';
import { parseToken, tokenLength } from './token.ts';

/** Finds this installation's tokens in a caller's text, plain or percent-encoded. */
export interface SecretText {
  /** Whether the text, or its NFC, contains a whole token: right prefix, form and checksum. */
  isIn(text: string): boolean;
  /** Whether a JSON text may contain a token. False is always right; much cheaper than a search. */
  mayBeIn(json: string): boolean;
  /** Replaces each whole token by `[redacted]`, for text that is stored. */
  redact(text: string): string;
  /**
   * Masks everything that looks like a token or a webhook secret, whole or cut off: for logs, spans and problem
   * documents.
   */
  mask(text: string): string;
}

const redacted = '[redacted]';

export function createSecretText(prefix: string): SecretText {
  const start = `${prefix}_`;
  const length = tokenLength(prefix);
  const kind = `${prefix}_[kavoc]_`;
  const lookAlike = new RegExp(
    `(${kind})${idSuffixPattern}_(?:(?!${kind})[0-9A-Za-z]){1,49}|(whsec_)(?:(?!${kind})[0-9A-Za-z+/=])+`,
    'g',
  );

  function placeOfToken(text: string, from: number): number {
    if (text.length < length) return -1;
    for (let at = text.indexOf(start, from); at >= 0; at = text.indexOf(start, at + 1)) {
      if (parseToken(text.slice(at, at + length), prefix) !== undefined) return at;
    }
    return -1;
  }

  const isPlainIn = (text: string) => placeOfToken(text, 0) >= 0;

  function redactPlain(text: string): string {
    let done = '';
    let from = 0;
    for (let at = placeOfToken(text, 0); at >= 0; at = placeOfToken(text, from)) {
      done += text.slice(from, at) + redacted;
      from = at + length;
    }
    return from === 0 ? text : done + text.slice(from);
  }

  return {
    isIn: (text) =>
      isPlainIn(text) ||
      (text.includes('%') && isPlainIn(decodePercent(text))) ||
      // Names are stored in NFC, which makes a K of the Kelvin sign.
      isPlainIn(text.normalize('NFC')),
    mayBeIn: (json) => json.length >= length && (json.includes(start) || json.includes('%') || json.includes('\\u')),
    redact: (text) => inEncodedRuns(redactPlain(text), (run) => (isPlainIn(run) ? redacted : undefined)),
    mask: (text) =>
      inEncodedRuns(text.replace(lookAlike, '$1$2…'), (run) => {
        const [, token = '', webhook = ''] = new RegExp(lookAlike.source).exec(run) ?? [];
        return token + webhook === '' ? undefined : `${token}${webhook}…`;
      }),
  };
}

/** Shorter credentials are not searched in text: they could occur in it by chance. */
const shortestSearched = 16;

/** Whether a text contains a credential that has no form of its own, plain or percent-encoded. */
export function holdsCredential(text: string, credential: string): boolean {
  if (credential.length < shortestSearched) return false;
  return text.includes(credential) || (text.includes('%') && decodePercent(text).includes(credential));
}

/** Replaces such a credential. A text that holds it percent-encoded is replaced as a whole. */
export function withoutCredential(text: string, credential: string): string {
  if (!holdsCredential(text, credential)) return text;
  const left = text.replaceAll(credential, redacted);
  return holdsCredential(left, credential) ? redacted : left;
}

/** Replaces percent-encoded words, such as in a path, by what `replace` returns for their decoded form. */
function inEncodedRuns(text: string, replace: (decoded: string) => string | undefined): string {
  if (!text.includes('%')) return text;
  return text.replace(/[\w%]+/g, (run) => (run.includes('%') ? (replace(decodePercent(run)) ?? run) : run));
}
